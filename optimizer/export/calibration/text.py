"""Text to calibrate on when the user brings none: the model's own.

Sampling from the model needs no corpus, has the model's own distribution in every language and
format it knows, and cannot leak a test set. Self-generated calibration data: Williams et al. 2024,
arXiv:2410.17170.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from codec.arrays import I64
from optimizer.export.calibration.hidden_states import cache_argument, embedding_shape
from optimizer.export.certify.certificate import Windows

_TEMPERATURE: Final = 1.0


def sampled_windows(
    model: PreTrainedModel, *, num_windows: int, window: int, seed: int, batch: int = 64
) -> Windows:
    """[num_windows, window] token ids drawn from the model, each from one random first token.

    Costs num_windows x window decode steps in batches of `batch`.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab_size, _ = embedding_shape(model)
    name = cache_argument(model)
    rows: list[I64] = []
    with torch.no_grad():
        for begin in range(0, num_windows, batch):
            count = min(batch, num_windows - begin)
            current = torch.randint(0, vocab_size, (count, 1), generator=generator)
            drawn, cache = [current], DynamicCache(config=model.config)
            for _ in range(window - 1):
                out = model(current, use_cache=True, **{name: cache})
                share = (out.logits[:, -1].float() / _TEMPERATURE).softmax(-1)
                current = torch.multinomial(share, 1, generator=generator)
                drawn.append(current)
            rows.append(torch.cat(drawn, dim=1).numpy())
    return np.concatenate(rows)
