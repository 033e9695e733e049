"""The trained head as a drafter: the front's last row in, the likely next tokens out.

`splitpoint train-draft` makes the head. It needs no cache and no state but that row, because the
front's layers have put what came before into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.draft.base import Drafter, DrafterKind, DraftResources, Guess, Rows
from edge.errors import FrontError
from edge.text_input import utf8_path
from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json

HEAD_NAME: Final = "head.onnx"
FACTS_NAME: Final = "head.json"
LETTERS: Final = ("", "b", "c", "d", "e", "f", "g", "h")  # of the guess and its alternatives


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFacts:
    """What training wrote beside the head. sure: (p, share, top1) by tenths of probability."""

    split: int
    sure: tuple[tuple[float, float, float], ...]

    @classmethod
    def load(cls, draft_dir: Path) -> HeadFacts:
        """Read the facts beside the head in `draft_dir`; FrontError when they are unreadable."""
        path = draft_dir / FACTS_NAME
        try:
            values = read_json(path)
            sure = tuple(
                (float(low), float(share), float(top1)) for low, share, top1 in values["sure"]
            )
            return cls(split=int(values["split"]), sure=sure)
        except ProfileError as error:
            raise FrontError(f"not readable facts of a draft head: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FrontError(f"{path}: not readable facts of a draft head ({error!r})") from error


class HeadModel:
    """The network, shared by all generations of a device. FrontError when it cannot be loaded."""

    def __init__(self, draft_dir: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = draft_dir / HEAD_NAME
        try:
            self._session = ort.InferenceSession(
                utf8_path(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
            raise FrontError(f"{path}: cannot be loaded ({error})") from error
        facts = HeadFacts.load(draft_dir)
        self._top1 = {round(10 * low): top1 for low, _, top1 in facts.sure}

    def guesses(self, row: npt.NDArray[np.float32]) -> tuple[Guess, ...]:
        """The likeliest tokens after `row` [D], in order.

        Kinds: `head-N` for the first, N being its probability in tenths; then `head-Nb`,
        `head-Nc`, ..., N being the share of the probability that the guesses before leave.
        """
        token_ids, shares = self._session.run(None, {"hidden": row[None]})
        found: list[Guess] = []
        left = 1.0
        for place, (token_id, share) in enumerate(zip(token_ids[0], shares[0], strict=True)):
            tenth = min(int(10 * float(share) / max(left, float(share))), 9)
            prior = tenth / 10 + 0.05
            if place == 0:
                prior = self._top1.get(tenth, prior)
            found.append(Guess(int(token_id), f"head-{tenth}{LETTERS[place]}", prior))
            left -= float(share)
        return tuple(found)


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
        """See Drafter: the row of the token that is now the last one is no longer known."""
        self._row = None

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter."""
        return () if self._row is None else self._model.guesses(self._row)


def _open(resources: DraftResources) -> Callable[[], Drafter] | None:
    bundle = resources.bundle
    if not bundle.has(f"draft/{HEAD_NAME}"):
        return None
    model = HeadModel(bundle.path(f"draft/{HEAD_NAME}").parent)
    return lambda: HeadDrafter(model)


KIND: Final = DrafterKind(
    name="head",
    open=_open,
    missing="this bundle has no draft head ('splitpoint train-draft' makes one)",
    in_auto=True,
    reads_rows=True,
)
