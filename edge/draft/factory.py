"""Which drafter a generation gets: by name, from what the device has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge.draft.acceptance import Acceptance
from edge.draft.base import Drafter, DraftResources
from edge.draft.best_of import BestOf
from edge.draft.cloud import ASKED_DRAFT_IDS, CLOUD
from edge.draft.registry import AUTO, KINDS, NAMES, OFF
from edge.errors import InputError
from optimizer.artifacts.bundle import Bundle
from optimizer.policy.power import FULL_EFFORT, DraftEffort

_MISSING: Final = {kind.name: kind.missing for kind in KINDS}
_READ_ROWS: Final = frozenset(kind.name for kind in KINDS if kind.reads_rows)


class DrafterFactory:
    """Makes the drafters of one device, from the kinds in the registry.

    bundle: may hold a draft head. model: the bundle of a small model, whole on the edge, with the
    same tokenizer; threads: of its kernels. memory_limit_bytes: of this process. effort: how much
    generations may guess. Raises FrontError for a head that cannot be loaded, and InputError for a
    model that does not fit.
    """

    def __init__(
        self,
        bundle: Bundle,
        model: Path | str | None = None,
        *,
        threads: int | None = None,
        memory_limit_bytes: int | None = None,
        effort: DraftEffort = FULL_EFFORT,
    ) -> None:
        self.effort = effort
        root = None if model is None else Path(model)
        resources = DraftResources(
            bundle=bundle, model=root, threads=threads, memory_limit_bytes=memory_limit_bytes
        )
        self._makers: dict[str, Callable[[], Drafter]] = {}
        self._auto: list[str] = []
        for kind in KINDS:
            maker = kind.open(resources)
            if maker is None:
                continue
            self._makers[kind.name] = maker
            if kind.in_auto:
                self._auto.append(kind.name)

    @property
    def names(self) -> tuple[str, ...]:
        """What `drafter` takes on this device."""
        return tuple(name for name in NAMES if name in (AUTO, OFF) or name in self._makers)

    def check(self, name: str) -> None:
        """InputError when this device has no drafter of this name."""
        if name not in NAMES:
            raise InputError(f"no drafter {name!r}: choose one of {', '.join(NAMES)}")
        if name not in (AUTO, OFF) and name not in self._makers:
            raise InputError(_MISSING[name])

    def drafter(
        self, name: str, acceptance: Acceptance, *, rows_fit: bool = True
    ) -> Drafter | None:
        """A new generation's drafter; None for `off`. InputError for one that is not there.

        rows_fit: whether the front's rows are those of the plan's split. Otherwise there is no
        drafter that reads them.

        `auto` combines all kinds that are meant for it. How much is drafted, down to nothing, is
        decided guess by guess. acceptance: the chances by which combined drafters compete.
        """
        self.check(name)
        if name == OFF:
            return None
        names = self._auto if name == AUTO else (name,)
        makers = [self._makers[kind] for kind in names if rows_fit or kind not in _READ_ROWS]
        if not makers:
            return None
        drafters = [make() for make in makers]
        return drafters[0] if len(drafters) == 1 else BestOf(drafters, acceptance)


def asked_draft_ids(name: str) -> int:
    """How many tokens a generation asks the cloud to guess, by the name of its drafter."""
    return ASKED_DRAFT_IDS if name in (AUTO, CLOUD) else 0
