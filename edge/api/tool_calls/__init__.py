"""Tool calls in a model's answer: the forms of model families, and a reader of streams."""
