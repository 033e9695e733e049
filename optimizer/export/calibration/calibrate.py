"""Calibrate splits: run the model over text, fit each ladder's tables, write the files.

What the fit needs is collected here: the hidden state entering the split, the gradient of the
model's own predictions with respect to it, and what the split sees of each common token alone.
Splits of one model share the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from copy import deepcopy
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from codec.arrays import F32, I64
from codec.levels.split_model import MOST_PREDICTION_BYTES, rotation_blocks
from codec.rows import RowCodec
from codec.tables import write_tables
from optimizer.errors import BuildError
from optimizer.export.calibration.fit import fit_ladder
from optimizer.export.calibration.hidden_states import (
    cache_argument,
    embedding_shape,
    hidden_passed_through,
)
from optimizer.export.calibration.measure import HeldOutRows, Progress
from optimizer.export.calibration.split_fit import States
from optimizer.export.calibration.text import sampled_windows
from optimizer.export.certify.certificate import Windows, text_windows

WINDOW: Final = 512
DEFAULT_NUM_TOKENS: Final = 32_768
HELD_OUT_WINDOWS: Final = 4  # beside the text that is fitted to, to measure levels on


class _Reached(Exception):  # noqa: N818 - it ends a forward pass early, it is no error
    """The hidden state that was wanted has been seen; the rest of the pass is not needed."""


def calibrate(
    model: PreTrainedModel,
    *,
    split: int,
    out: Path,
    token_ids: list[int] | None = None,
    num_tokens: int = DEFAULT_NUM_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
) -> str:
    """`calibrate_splits` for one split: fit its ladder, write it to `out`, return the SHA-256."""
    digests = calibrate_splits(
        model,
        {split: out},
        token_ids=token_ids,
        num_tokens=num_tokens,
        seed=seed,
        progress=progress,
    )
    return digests[split]


def calibrate_splits(
    model: PreTrainedModel,
    outs: Mapping[int, Path],
    *,
    token_ids: list[int] | None = None,
    num_tokens: int = DEFAULT_NUM_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, str]:
    """Fit the ladder of `model` at each split of `outs` and write it there. Returns the SHA-256s.

    model: the whole model, float32, eval mode. token_ids: calibration text, of which the first
    num_tokens are fitted to; None samples from the model. Up to HELD_OUT_WINDOWS windows more, an
    eighth of a shorter text, are kept from the fit to measure levels on. Raises BuildError when
    the text is too short.
    """
    tell = progress or (lambda stage, done, total: None)
    if token_ids is None:
        tell("sampling calibration text", 0, 1)
        count = max(2, num_tokens // WINDOW) + HELD_OUT_WINDOWS
        windows = sampled_windows(model, num_windows=count, window=WINDOW, seed=seed)
        fitted, held = windows[HELD_OUT_WINDOWS:], windows[:HELD_OUT_WINDOWS]
    else:
        most = num_tokens + HELD_OUT_WINDOWS * WINDOW
        fitted, held = held_apart(text_windows(token_ids, window=WINDOW, max_tokens=most))
    _, hidden_size = embedding_shape(model)
    if fitted.size < 4 * hidden_size:
        raise BuildError(
            f"{fitted.size} tokens of calibration text are too few for a width of {hidden_size}; "
            f"at least {4 * hidden_size} are needed"
        )
    splits = list(outs)
    states = collect_states(model, splits=splits, windows=fitted, seed=seed, progress=tell)
    measured_on = _held_out(model, splits, held)
    digests = {}
    for split, out in outs.items():
        tell(f"fitting split {split}", 0, 1)

        def measure(codecs: Sequence[RowCodec], split: int = split) -> list[float]:
            return measured_on[split].losses(model, split, codecs, tell)

        header, arrays = fit_ladder(
            states.pop(split),
            num_blocks=rotation_blocks(hidden_size),
            measure=measure if len(held) else None,
        )
        digests[split] = write_tables(out, header, arrays)
    return digests


def held_apart(windows: Windows) -> tuple[Windows, Windows]:
    """Windows to fit to, and an eighth of them, at most HELD_OUT_WINDOWS, evenly over the text."""
    count = min(HELD_OUT_WINDOWS, len(windows) // 8)
    held = np.zeros(len(windows), dtype=np.bool_)
    held[(np.arange(count) * len(windows) + len(windows) // 2) // max(count, 1)] = True
    return windows[~held], windows[held]


def _held_out(
    model: PreTrainedModel, splits: Sequence[int], windows: Windows
) -> dict[int, HeldOutRows]:
    """Rows of held-out windows at every split, from one pass."""
    found: dict[int, list[F32]] = {split: [] for split in splits}
    for ids in windows:
        for split, state in _states_of(model, splits, torch.from_numpy(ids)[None]).items():
            found[split].append(state[0].float().numpy())
    return {
        split: HeldOutRows(windows=windows, hidden=np.array(rows, dtype=np.float32))
        for split, rows in found.items()
    }


def collect_states(
    model: PreTrainedModel,
    *,
    splits: Sequence[int],
    windows: Windows,
    seed: int,
    progress: Progress,
) -> dict[int, States]:
    """Hidden states, their loss gradients, and token features at each split."""
    generator = torch.Generator().manual_seed(seed)
    hidden: dict[int, list[F32]] = {split: [] for split in splits}
    gradient: dict[int, list[F32]] = {split: [] for split in splits}
    for done, ids in enumerate(windows):
        of_window = _states_and_gradients(model, splits, torch.from_numpy(ids), generator)
        for split, (state, slope) in of_window.items():
            hidden[split].append(state)
            gradient[split].append(slope)
        progress("reading hidden states", done + 1, len(windows))
    vocab_size, hidden_size = embedding_shape(model)
    listed = listed_tokens(windows, vocab_size, MOST_PREDICTION_BYTES // hidden_size)
    first = int(np.bincount(windows.reshape(-1)).argmax())
    features = _right_after(model, splits, listed, first, progress)
    return {
        split: States(
            hidden=np.concatenate(hidden[split]),
            gradient=np.concatenate(gradient[split]),
            token_ids=windows.reshape(-1),
            window=windows.shape[1],
            listed_ids=listed,
            listed_features=features[split],
        )
        for split in splits
    }


def listed_tokens(windows: Windows, vocab_size: int, most: int) -> I64:
    """Sorted ids of the `most` tokens worth a prediction: the text's frequent ones, then low ids.

    Byte-pair vocabularies are in order of merging, so a low id is a frequent token.
    """
    count = np.bincount(windows.reshape(-1), minlength=vocab_size)
    ranked = np.lexsort((np.arange(vocab_size), -count))
    return np.sort(ranked[: min(most, vocab_size)])


def _states_and_gradients(
    model: PreTrainedModel, splits: Sequence[int], tokens: Tensor, generator: torch.Generator
) -> dict[int, tuple[F32, F32]]:
    """By split, hidden state [T, D] and gradient of log p(y) summed over positions, y drawn from p.

    The second moment of that gradient is the Fisher information: half its quadratic form is the KL
    that a small error costs (Amari 1998, doi 10.1162/089976698300017746).
    """
    kept: dict[int, Tensor] = {}

    def keep(split: int) -> Callable[[Tensor], Tensor]:
        def passed(state: Tensor) -> Tensor:
            # The gradient is followed back to the first split; later states are part of its graph.
            kept[split] = state if kept else state.detach().requires_grad_(True)
            return kept[split]

        return passed

    needed = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with ExitStack() as hooks:
            for split in splits:
                hooks.enter_context(hidden_passed_through(model, split, keep(split)))
            log_probs = model(tokens[None], use_cache=False).logits[0].float().log_softmax(-1)
        labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
        score = log_probs.gather(1, labels).sum()
        slopes = dict(zip(kept, torch.autograd.grad(score, list(kept.values())), strict=True))
    finally:
        for parameter, need in zip(model.parameters(), needed, strict=True):
            parameter.requires_grad_(need)
    return {
        split: (kept[split].detach()[0].float().numpy(), slopes[split][0].float().numpy())
        for split in splits
    }


def _right_after(
    model: PreTrainedModel,
    splits: Sequence[int],
    listed: I64,
    first: int,
    progress: Progress,
    batch: int = 256,
) -> dict[int, F32]:
    """By split, hidden state [V', D] of each listed token right after one common token, `first`.

    Not at position 0: the first position is an attention sink and looks like nothing else. The
    common token is computed once; its keys and values are shared.
    """
    found: dict[int, list[F32]] = {split: [] for split in splits}
    name = cache_argument(model)
    begun = DynamicCache(config=model.config)
    _states_of(model, splits, torch.tensor([[first]]), **{name: begun})
    for begin in range(0, len(listed), batch):
        second = torch.from_numpy(listed[begin : begin + batch])[:, None]
        cache = deepcopy(begun)
        cache.batch_repeat_interleave(len(second))
        for split, state in _states_of(model, splits, second, **{name: cache}).items():
            found[split].append(state[:, 0].float().numpy())
        progress("reading tokens alone", begin + len(second), len(listed))
    return {split: np.concatenate(states) for split, states in found.items()}


def _states_of(
    model: PreTrainedModel, splits: Sequence[int], token_ids: Tensor, **cache: DynamicCache
) -> dict[int, Tensor]:
    """Hidden states [B, T, D] at each split; nothing after the last of them is computed."""
    found: dict[int, Tensor] = {}

    def keep(split: int) -> Callable[[Tensor], Tensor]:
        def passed(state: Tensor) -> Tensor:
            found[split] = state.detach().clone()
            if len(found) == len(splits):
                raise _Reached
            return state

        return passed

    with torch.no_grad(), ExitStack() as hooks:
        for split in splits:
            hooks.enter_context(hidden_passed_through(model, split, keep(split)))
        with suppress(_Reached):
            model(token_ids, use_cache=bool(cache), **cache)
    return found
