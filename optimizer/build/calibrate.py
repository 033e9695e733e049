"""Calibrate a split: run the model over text, fit the ladder's tables, write the file.

What the fit needs is collected here: the hidden state entering the split, the gradient of the
model's own predictions with respect to it, and what the split sees of each common token alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codec.tables import write_tables
from optimizer.build.calib_fit import States, fit_ladder
from optimizer.build.calib_model import embedding_shape, hidden_passed_through
from optimizer.build.calib_text import sampled_windows
from optimizer.build.certify import Windows, text_windows
from optimizer.errors import BuildError

WINDOW = 512
DEFAULT_NUM_TOKENS = 32_768
MAX_PREDICTION_BYTES = 32 << 20  # one byte per listed token and channel; mapped, not loaded
# Above this width a dense rotation costs more than the layers it saves traffic for.
_DENSE_UP_TO = 2048
_BLOCK = 256

Progress = Callable[[str, int, int], None]  # what is being done, done, of how many


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
    """Fit the ladder of `model` at `split` and write it to `out`. Returns the file's SHA-256.

    model: the whole model, float32, eval mode. token_ids: calibration text, of which the first
    num_tokens count; None samples from the model. Raises BuildError when the text is too short.
    """
    tell = progress or (lambda stage, done, total: None)
    if token_ids is None:
        tell("sampling calibration text", 0, 1)
        count = max(2, num_tokens // WINDOW)
        windows = sampled_windows(model, num_windows=count, window=WINDOW, seed=seed)
    else:
        windows = text_windows(token_ids, window=WINDOW, max_tokens=num_tokens)
    _, hidden_size = embedding_shape(model)
    if windows.size < 4 * hidden_size:
        raise BuildError(
            f"{windows.size} tokens of calibration text are too few for a width of {hidden_size}; "
            f"at least {4 * hidden_size} are needed"
        )
    states = collect_states(model, split=split, windows=windows, seed=seed, progress=tell)
    tell("fitting", 0, 1)
    header, arrays = fit_ladder(states, num_blocks=blocks_for(hidden_size))
    return write_tables(out, header, arrays)


def blocks_for(hidden_size: int) -> int:
    """Blocks of the rotation: one up to a width of 2048, else blocks of 256 where that divides."""
    if hidden_size <= _DENSE_UP_TO or hidden_size % _BLOCK:
        return 1
    return hidden_size // _BLOCK


def collect_states(
    model: PreTrainedModel,
    *,
    split: int,
    windows: Windows,
    seed: int,
    progress: Progress,
) -> States:
    """Hidden states, their loss gradients, and token features at `split`."""
    generator = torch.Generator().manual_seed(seed)
    hidden, gradient = [], []
    for done, ids in enumerate(windows):
        state, slope = _state_and_gradient(model, split, torch.from_numpy(ids), generator)
        hidden.append(state)
        gradient.append(slope)
        progress("reading hidden states", done + 1, len(windows))
    vocab_size, hidden_size = embedding_shape(model)
    listed = listed_tokens(windows, vocab_size, MAX_PREDICTION_BYTES // hidden_size)
    first = int(np.bincount(windows.reshape(-1)).argmax())
    return States(
        hidden=np.concatenate(hidden),
        gradient=np.concatenate(gradient),
        token_ids=windows.reshape(-1),
        window=windows.shape[1],
        listed_ids=listed,
        listed_features=_alone(model, split, listed, first, progress),
    )


def listed_tokens(windows: Windows, vocab_size: int, most: int) -> npt.NDArray[np.int64]:
    """Sorted ids of the `most` tokens worth a prediction: the text's frequent ones, then low ids.

    Byte-pair vocabularies are in order of merging, so a low id is a frequent token.
    """
    count = np.bincount(windows.reshape(-1), minlength=vocab_size)
    ranked = np.lexsort((np.arange(vocab_size), -count))
    return np.sort(ranked[: min(most, vocab_size)])


def _state_and_gradient(
    model: PreTrainedModel, split: int, tokens: Tensor, generator: torch.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Hidden state [T, D] and the gradient of log p(y) summed over positions, y drawn from p.

    The second moment of that gradient is the Fisher information: half its quadratic form is the KL
    that a small error costs (Amari 1998, doi 10.1162/089976698300017746).
    """
    leaves: list[Tensor] = []

    def start_here(state: Tensor) -> Tensor:
        leaves.append(state.detach().requires_grad_(True))
        return leaves[0]

    needed = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        with hidden_passed_through(model, split, start_here):
            log_probs = model(tokens[None], use_cache=False).logits[0].float().log_softmax(-1)
        labels = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
        (slope,) = torch.autograd.grad(log_probs.gather(1, labels).sum(), leaves[0])
    finally:
        for parameter, need in zip(model.parameters(), needed, strict=True):
            parameter.requires_grad_(need)
    return leaves[0].detach()[0].float().numpy(), slope[0].float().numpy()


def _alone(
    model: PreTrainedModel,
    split: int,
    listed: npt.NDArray[np.int64],
    first: int,
    progress: Progress,
    batch: int = 256,
) -> npt.NDArray[np.float32]:
    """Hidden state [V', D] of each listed token right after one common token.

    Not at position 0: the first position is an attention sink and looks like nothing else.
    """
    found: list[npt.NDArray[np.float32]] = []

    def keep(state: Tensor) -> Tensor:
        found.append(state[:, 1].float().numpy())
        raise _Reached

    for begin in range(0, len(listed), batch):
        second = torch.from_numpy(listed[begin : begin + batch])[:, None]
        pair = torch.cat([torch.full_like(second, first), second], dim=1)
        with torch.no_grad(), hidden_passed_through(model, split, keep), suppress(_Reached):
            model(pair, use_cache=False)
        progress("reading tokens alone", begin + len(second), len(listed))
    return np.concatenate(found)
