"""From logits to tokens: parameters and the sampler, for both sides."""
