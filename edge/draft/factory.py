"""Which drafter a generation gets: by name, from what the bundle holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge.device.front import FrontEngine
from edge.draft.acceptance import Acceptance
from edge.draft.best_of import BestOf
from edge.draft.drafter import Drafter
from edge.draft.head import HEAD_NAME, HeadDrafter, HeadModel
from edge.draft.model import ModelDrafter
from edge.draft.ngram import NgramDrafter
from edge.errors import InputError
from edge.generation.drafting import Drafting
from optimizer.artifacts.bundle import Bundle, open_bundle

TOKENIZER: Final = "edge/tokenizer.json"
AUTO: Final = "auto"
OFF: Final = "off"
NGRAM: Final = "ngram"
HEAD: Final = "head"
MODEL: Final = "model"
NAMES: Final = (AUTO, OFF, NGRAM, HEAD, MODEL)


class DraftModel:
    """A small model's bundle, opened once for all generations of a device."""

    def __init__(self, root: Path, *, like: Bundle) -> None:
        bundle = open_bundle(root, role="edge")
        if not bundle.plan.edge_is_whole:
            raise InputError(f"{root}: a draft model must lie wholly on the edge")
        if bundle.files[TOKENIZER].sha256 != like.files[TOKENIZER].sha256:
            raise InputError(f"{root}: its tokenizer is another one than {like.root}'s")
        self._plan = bundle.plan
        (self._engine,) = FrontEngine.load(bundle.edge_dir, plan=bundle.plan)

    def drafter(self) -> ModelDrafter:
        """A drafter with a cache of its own."""
        return ModelDrafter(
            self._engine.sibling(),
            max_tokens=self._plan.max_tokens,
            chunk_tokens=self._plan.prefill_chunk,
        )


class DraftChoice:
    """The drafters of one bundle, which may hold a head in `draft/`.

    model: a bundle of a small model, whole on the edge, with the same tokenizer. Raises FrontError
    for a head that cannot be loaded, and InputError for a model that does not fit.
    """

    def __init__(
        self, bundle: Bundle, clock: Callable[[], float], *, model: Path | None = None
    ) -> None:
        draft_dir = bundle.draft_dir
        self._clock = clock
        self._model = None if model is None else DraftModel(model, like=bundle)
        self._head = HeadModel(draft_dir) if (draft_dir / HEAD_NAME).is_file() else None

    def check(self, name: str) -> None:
        """InputError when the bundle has no drafter of this name."""
        if name not in NAMES:
            raise InputError(f"no drafter {name!r}: choose one of {', '.join(NAMES)}")
        if name == HEAD and self._head is None:
            raise InputError("this bundle has no draft head ('splitpoint train-draft' makes one)")
        if name == MODEL and self._model is None:
            raise InputError("drafting by a model needs its bundle (--draft-model)")

    def drafting(self, name: str) -> Drafting | None:
        """A new generation's drafting; None for `off`. InputError for a drafter not there.

        `auto` takes look-up and head; how much is drafted, down to nothing, is decided guess by
        guess.
        """
        self.check(name)
        if name == OFF:
            return None
        drafters: list[Drafter] = []
        if name in (AUTO, NGRAM):
            drafters.append(NgramDrafter())
        if name in (AUTO, HEAD) and self._head is not None:
            drafters.append(HeadDrafter(self._head))
        if name == MODEL and self._model is not None:
            drafters.append(self._model.drafter())
        acceptance = Acceptance()
        drafter = drafters[0] if len(drafters) == 1 else BestOf(drafters, acceptance)
        return Drafting(drafter, clock=self._clock, acceptance=acceptance)
