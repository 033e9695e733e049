"""The trained head as a drafter: the front's last row in, the likely next token out.

Made by `splitpoint train-draft`. It needs no cache and no state but that row: what came before is
in the row already, through the front's layers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.draft.drafter import Guess, Rows
from edge.errors import FrontError

HEAD_NAME: Final = "head.onnx"
FACTS_NAME: Final = "head.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFacts:
    """What training wrote beside the head. sure: (p, share, top1) by tenths of probability."""

    split: int
    sure: tuple[tuple[float, float, float], ...]

    @classmethod
    def load(cls, draft_dir: Path) -> HeadFacts:
        path = draft_dir / FACTS_NAME
        try:
            values = json.loads(path.read_text())
            sure = tuple(
                (float(low), float(share), float(top1)) for low, share, top1 in values["sure"]
            )
            return cls(split=int(values["split"]), sure=sure)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FrontError(f"{path}: not readable facts of a draft head ({error!r})") from error


class HeadModel:
    """The network, shared by all generations of a device."""

    def __init__(self, draft_dir: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = draft_dir / HEAD_NAME
        try:
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
            raise FrontError(f"{path}: cannot be loaded ({error})") from error
        facts = HeadFacts.load(draft_dir)
        self._top1 = {round(10 * low): top1 for low, _, top1 in facts.sure}

    def guesses(self, row: npt.NDArray[np.float32]) -> tuple[Guess, ...]:
        """The two likeliest tokens after `row` [D], the likelier first.

        Kinds: `head-N`, N the probability in tenths; `head-Nb`, N being its share of what the
        first one leaves, in tenths.
        """
        token_ids, shares = self._session.run(None, {"hidden": row[None]})
        first, second = float(shares[0, 0]), float(shares[0, 1])
        tenth = _tenth(first)
        rest = _tenth(second / max(1.0 - first, second))
        return (
            Guess(int(token_ids[0, 0]), f"head-{tenth}", self._top1.get(tenth, tenth / 10 + 0.05)),
            Guess(int(token_ids[0, 1]), f"head-{rest}b", rest / 10 + 0.05),
        )


class HeadDrafter:
    """See the module's docstring."""

    def __init__(self, model: HeadModel) -> None:
        self._model = model
        self._row: npt.NDArray[np.float32] | None = None

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        """See Drafter."""
        if token_ids:
            self._row = None if rows is None else rows[-1]

    def rollback(self, num_tokens: int) -> None:
        """See Drafter: the row of the token that is last now is not known any more."""
        self._row = None

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter."""
        return () if self._row is None else self._model.guesses(self._row)


def _tenth(share: float) -> int:
    return min(int(10 * share), 9)
