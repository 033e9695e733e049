"""Calibrate splits: run the model over text, fit each ladder's tables, write the files.

What the fit needs is collected here: the hidden state entering the split, the gradient of the
model's own predictions with respect to it, and what the split sees of each common token alone.
Splits of one model share the passes (`optimizer.export.layers.passes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import torch

from codec.arrays import F32, I64
from codec.levels.split_model import MOST_PREDICTION_BYTES, SplitModel, rotation_blocks
from codec.rows import RowCodec
from codec.tables import write_tables
from optimizer.cost.build_memory import TOKENS_A_CHANNEL
from optimizer.errors import BuildError
from optimizer.export.calibration.fit import fit_ladder
from optimizer.export.calibration.forecast_fit import fit_forecast
from optimizer.export.calibration.measure import HeldOutRows
from optimizer.export.calibration.recall_fit import FittedRecall, fit_recall
from optimizer.export.calibration.split_fit import States, fit_split, usual_rows
from optimizer.export.calibration.text import (
    GIVEN_TEXT,
    OWN_TEXT,
    REPEATING_TOKENS,
    SHIPPED_TEXT,
    OwnTextHints,
    sampled_windows,
    shipped_ids,
)
from optimizer.export.certify.certificate import Windows, text_windows
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import Progress, gradients_at, states_after, states_at
from optimizer.export.layers.rows_on_disk import HiddenRows, copied
from optimizer.export.sources.model_source import ModelSource

TextWindows: TypeAlias = tuple[Windows, Windows]  # to fit to, and held out
WINDOW: Final = 512
DEFAULT_NUM_TOKENS: Final = 32_768
_NO_HINTS: Final = OwnTextHints()
HELD_OUT_WINDOWS: Final = 4  # beside the text that is fitted to, to measure levels on


def calibrate(
    model: LayeredModel,
    *,
    split: int,
    out: Path,
    token_ids: list[int] | None = None,
    windows: TextWindows | None = None,
    num_tokens: int = DEFAULT_NUM_TOKENS,
    seed: int = 0,
    own: OwnTextHints = _NO_HINTS,
    text: str = "",
    known_tokens: int | None = None,
    progress: Progress | None = None,
) -> str:
    """`calibrate_splits` for one split: fit its ladder, write it to `out`, return the SHA-256."""
    digests = calibrate_splits(
        model,
        {split: out},
        token_ids=token_ids,
        windows=windows,
        num_tokens=num_tokens,
        seed=seed,
        own=own,
        text=text,
        known_tokens=known_tokens,
        progress=progress,
    )
    return digests[split]


def calibrate_splits(
    model: LayeredModel,
    outs: Mapping[int, Path],
    *,
    token_ids: list[int] | None = None,
    windows: TextWindows | None = None,
    num_tokens: int = DEFAULT_NUM_TOKENS,
    seed: int = 0,
    own: OwnTextHints = _NO_HINTS,
    text: str = "",
    known_tokens: int | None = None,
    progress: Progress | None = None,
) -> dict[int, str]:
    """Fit the ladder of `model` at each split of `outs` and write it there. Returns the SHA-256s.

    token_ids: calibration text, of which the first num_tokens are fitted to, or as many as the
    model's width needs; None lets the model write it, which needs all layers in memory. Up to
    HELD_OUT_WINDOWS windows more, an eighth of a shorter text, are kept from the fit to measure
    levels on. windows: instead of these, what `windows_to_fit` gave. own: where the model writes
    the text, how that begins, and what shares of earlier rows are fitted to. text: what the tables'
    header calls this text. known_tokens: most tokens that the tables predict a row for; None: as
    many as tables may hold. Raises BuildError when the text is too short.
    """
    tell = progress or (lambda stage, done, total: None)
    with model.in_bfloat16():
        fitted, held = windows or windows_to_fit(
            model, token_ids, num_tokens=num_tokens, seed=seed, starts=own.starts, progress=tell
        )
        found = collect_states(
            model,
            splits=list(outs),
            windows=fitted,
            held_out=held,
            seed=seed,
            known_tokens=known_tokens,
            progress=tell,
        )
        repeating = _repeating_rows(model, list(outs), own, tell)
    model.release()
    digests = {}
    for split, out in outs.items():
        tell(f"fitting split {split}", 0, 1)
        at_split = found.pop(split)
        held_rows = at_split.held_out

        def measure(
            codecs: Sequence[RowCodec], split: int = split, rows: HeldOutRows = held_rows
        ) -> list[float]:
            return rows.losses(model, split, codecs, tell)

        states = at_split.states()
        fitted_split = fit_split(states, num_blocks=rotation_blocks(model.hidden_size))
        if split in repeating:
            recall = repeating[split].fit(fitted_split.model)
        else:
            usual = usual_rows(states.hidden)
            recall = fit_recall(fitted_split.components, usual, states.token_ids, states.window)
        forecast = fit_forecast(fitted_split.model, states)
        del states
        header, arrays = fit_ladder(
            fitted_split,
            measure=measure if len(held) else None,
            recall=recall,
            forecast=forecast,
        )
        digests[split] = write_tables(out, {**header, "text": text} if text else header, arrays)
    return digests


@dataclass(frozen=True, slots=True)
class _RepeatingRows:
    """Rows [N, W, D] of windows [N, W] of text that repeats its words as people do."""

    windows: Windows
    hidden: F32

    def fit(self, model: SplitModel) -> FittedRecall:
        """What they share with earlier rows, in the components of `model`."""
        ids = self.windows.reshape(-1)
        rows = self.hidden.reshape(len(ids), -1)
        usual = usual_rows(rows)
        components = model.rotate(rows[usual] - model.mean) - model.predicted(ids[usual])
        return fit_recall(components, usual, ids, self.windows.shape[1])


def _repeating_rows(
    model: LayeredModel, splits: Sequence[int], own: OwnTextHints, progress: Progress
) -> dict[int, _RepeatingRows]:
    """Such rows at each split; none where there is no such text."""
    if len(own.repeating) < WINDOW:
        return {}
    windows = text_windows(own.repeating, window=WINDOW, max_tokens=REPEATING_TOKENS)
    found = {}
    for split, rows in states_at(model, splits, windows, progress).items():
        found[split] = _RepeatingRows(windows, rows.read(0, len(rows)).numpy())
        rows.close()
    return found


def windows_to_fit(
    model: LayeredModel,
    token_ids: list[int] | None,
    *,
    num_tokens: int,
    seed: int = 0,
    starts: Sequence[Sequence[int]] = (),
    progress: Progress | None = None,
) -> TextWindows:
    """Windows to fit to, and those kept from the fit; arguments as those of `calibrate_splits`.

    What the model writes is faster inside `model.in_bfloat16()`.
    """
    num_tokens = max(num_tokens, tokens_to_fit(model.hidden_size))
    if token_ids is None:
        count = max(2, num_tokens // WINDOW) + HELD_OUT_WINDOWS
        windows = sampled_windows(
            model.whole(),
            num_windows=count,
            window=WINDOW,
            seed=seed,
            starts=starts,
            progress=progress,
        )
        fitted, held = windows[HELD_OUT_WINDOWS:], windows[:HELD_OUT_WINDOWS]
    else:
        most = num_tokens + HELD_OUT_WINDOWS * WINDOW
        fitted, held = held_apart(text_windows(token_ids, window=WINDOW, max_tokens=most))
    if fitted.size < TOKENS_A_CHANNEL * model.hidden_size:
        raise BuildError(
            f"{fitted.size} tokens of calibration text are too few for a width of "
            f"{model.hidden_size}; at least {TOKENS_A_CHANNEL * model.hidden_size} are needed"
        )
    return fitted, held


def calibration_text(
    model: LayeredModel,
    source: ModelSource,
    *,
    given: str | None,
    num_tokens: int,
    writes: bool = True,
) -> tuple[list[int] | None, str]:
    """Token ids to calibrate on, None where the model writes them, and what the text is called.

    writes: whether a model that can write its text does.
    """
    if given is not None:
        return list(source.load_tokenizer()(given)["input_ids"]), GIVEN_TEXT
    if model.keeps and writes:
        return None, OWN_TEXT
    count = max(num_tokens, tokens_to_fit(model.hidden_size)) + HELD_OUT_WINDOWS * WINDOW
    return shipped_ids(source.load_tokenizer(), count), SHIPPED_TEXT


def tokens_to_fit(hidden_size: int) -> int:
    """The fewest tokens that a fit at this width takes, whole windows of them."""
    return -(-TOKENS_A_CHANNEL * hidden_size // WINDOW) * WINDOW


def held_apart(windows: Windows) -> tuple[Windows, Windows]:
    """Windows to fit to, and an eighth of them, at most HELD_OUT_WINDOWS, evenly over the text."""
    count = min(HELD_OUT_WINDOWS, len(windows) // 8)
    held = np.zeros(len(windows), dtype=np.bool_)
    held[(np.arange(count) * len(windows) + len(windows) // 2) // max(count, 1)] = True
    return windows[~held], windows[held]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedStates:
    """Calibration data at one split, on disk where the model's layers are streamed.

    hidden, gradient: rows [N, W, D] of `windows` [N, W]. held_out: rows that no fit sees.
    """

    windows: Windows
    hidden: HiddenRows
    gradient: HiddenRows
    listed_ids: I64
    listed_features: F32
    held_out: HeldOutRows

    def states(self) -> States:
        """Everything in memory, as the fit takes it. Frees what lies on disk."""
        size = self.hidden.shape[-1]
        rows = []
        for stored in (self.hidden, self.gradient):
            rows.append(stored.read(0, len(stored)).numpy().reshape(-1, size))
            stored.close()
        return States(
            hidden=rows[0],
            gradient=rows[1],
            token_ids=self.windows.reshape(-1),
            window=self.windows.shape[1],
            listed_ids=self.listed_ids,
            listed_features=self.listed_features,
        )


def collect_states(
    model: LayeredModel,
    *,
    splits: Sequence[int],
    windows: Windows,
    seed: int,
    progress: Progress,
    held_out: Windows | None = None,
    known_tokens: int | None = None,
) -> dict[int, CollectedStates]:
    """Hidden states, their loss gradients, and token features at each split."""
    generator = torch.Generator().manual_seed(seed)
    count = len(windows)
    held = windows[:0] if held_out is None else held_out
    states = states_at(model, splits, np.concatenate([windows, held]), progress)
    hidden = {split: copied(rows, 0, count) for split, rows in states.items()}
    held_rows = {split: rows.read(count, len(rows)).numpy() for split, rows in states.items()}
    for rows in states.values():
        rows.close()
    gradient = gradients_at(model, splits, hidden[min(splits)], generator, progress)
    model.release(but_first=max(splits))
    most = MOST_PREDICTION_BYTES // model.hidden_size
    most = most if known_tokens is None else min(most, known_tokens)
    listed = listed_tokens(windows, model.vocab_size, most)
    first = int(np.bincount(windows.reshape(-1)).argmax())
    features = states_after(model, splits, listed, first, progress)
    return {
        split: CollectedStates(
            windows=windows,
            hidden=hidden[split],
            gradient=gradient[split],
            listed_ids=listed,
            listed_features=features[split],
            held_out=HeldOutRows(windows=held, hidden=held_rows[split]),
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
