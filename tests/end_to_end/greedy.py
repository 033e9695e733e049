"""What the whole model says, from transformers, and how to compare a split's answer with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# Two float32 evaluations of one model may order two logits differently when they lie closer.
TIE = 1e-4


def generate(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """`transformers`' own greedy generate, to `count` tokens whatever they are."""
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=0,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def first_difference(
    model: Any, prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int] | None = None
) -> str | None:
    """None when `ours` is the whole model's greedy continuation; otherwise what differs first.

    theirs: what `generate` said, when that is known already. A difference where the two best
    logits lie within `TIE` of each other is none; from there on the model is asked what follows
    our choice.
    """
    prompt, ours = list(prompt), list(ours)
    theirs = generate(model, prompt, len(ours)) if theirs is None else theirs
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine == other:
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + ours[:index]])).logits[0, -1].numpy()
        gap = float(np.abs(logits[other] - logits[mine]))
        if gap > TIE:
            return f"token {index}: {mine}, transformers says {other}, logits {gap:.2g} apart"
        return first_difference(model, prompt + ours[: index + 1], ours[index + 1 :])
    return None
