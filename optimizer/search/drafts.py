"""Ways to draft that a plan may choose among: a bundle's heads, prompt look-up, and all together.

Every number of guesses in a round's first frame, up to eight, is a choice of its own. Guesses
behind them go in frames ahead of the answer where the link leaves time for that
(`optimizer.cost.flight`). The device settles both at run time (`edge.generation.drafting`); the
plan decides who drafts and counts on the best number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.bundle import DRAFT_HEAD_FOLDER, checked_files
from optimizer.cost.request import DraftedRound
from optimizer.errors import PlanError
from optimizer.search.problem import DraftOption

T = TypeVar("T")

MOST_DRAFTS: Final = 8
DEEPEST: Final = 64  # guesses behind one another that are counted
FACTS_NAME: Final = "head.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCost:
    """One drafter: how often its guesses are right, seconds of one guess on the device, bytes
    there, and the only split it works at (None: any).

    chances: that the first, the second, ... guess is right when those before it were; deeper ones
    are as good as the last that is given. With one, every guess is right equally often.
    """

    kind: str
    chances: tuple[float, ...]
    guess_s: float = 0.0
    memory_bytes: float = 0.0
    split: int | None = None

    def __post_init__(self) -> None:
        given = bool(self.chances) and all(0 <= chance <= 1 for chance in self.chances)
        if not given or not self.guess_s >= 0 or not self.memory_bytes >= 0:
            raise PlanError(f"drafting by {self.kind}: acceptance must lie between 0 and 1")

    @property
    def reach(self) -> tuple[float, ...]:
        """The chance that guess i and all before it are right, up to `DEEPEST`."""
        deeper = itertools.repeat(self.chances[-1], max(DEEPEST - len(self.chances), 0))
        chances = itertools.islice(itertools.chain(self.chances, deeper), DEEPEST)
        return tuple(itertools.accumulate(chances, lambda reach, chance: reach * chance))


def draft_options(cost: DraftCost) -> tuple[DraftOption, ...]:
    """One choice for each number of guesses in the first frame, 0 to `MOST_DRAFTS`."""
    reach = cost.reach
    return tuple(
        DraftOption(
            kind=cost.kind,
            drafting=DraftedRound(
                num_drafts=count,
                tokens_per_round=1.0 + math.fsum(reach[:count]),
                # With no guess in the frame one is made all the same, to go ahead.
                draft_s=max(count, 1) * cost.guess_s,
                reach_ahead=reach[count:],
            ),
            memory_bytes=cost.memory_bytes,
            split=cost.split,
        )
        for count in range(MOST_DRAFTS + 1)
    )


def measured_drafting(tokens_per_round_trip: float, heads: Sequence[DraftCost] = ()) -> DraftCost:
    """All drafters of a device together, from what `run --json` reported.

    Every guess is right with the same chance a then, and a round trip brings 1 / (1 - a) tokens.
    heads: of the bundle. One on the device takes its memory, its time, and its split.
    """
    if not 1 <= tokens_per_round_trip < math.inf:
        raise PlanError(f"{tokens_per_round_trip:g} tokens a round trip: at least 1 comes")
    return DraftCost(
        kind="auto",
        chances=(1.0 - 1.0 / tokens_per_round_trip,),
        guess_s=math.fsum(head.guess_s for head in heads),
        memory_bytes=math.fsum(head.memory_bytes for head in heads),
        split=next((head.split for head in heads if head.split is not None), None),
    )


def heads_of_bundle(bundle: Path) -> tuple[DraftCost, ...]:
    """The draft heads of a bundle, on either side, with their measured figures. PlanError when it
    has none."""
    found = [
        read(path)
        for folder, read in (("draft", _edge_head), (DRAFT_HEAD_FOLDER, _cloud_head))
        for path in checked_files(bundle, folder, ".json")
        if path.name == FACTS_NAME
    ]
    if not found:
        raise PlanError(f"{bundle}: has no draft head ('splitpoint train-draft')")
    return tuple(found)


def _edge_head(path: Path) -> DraftCost:
    return _read(
        path,
        lambda facts: DraftCost(
            kind="head",
            chances=(float(facts["top1"]),),
            guess_s=float(facts["guess_s"]),
            memory_bytes=float(facts["num_bytes"]),
            split=int(facts["split"]),
        ),
    )


def _cloud_head(path: Path) -> DraftCost:
    """The server guesses while its answer travels, so the device's time is its rows alone."""
    return _read(
        path,
        lambda facts: DraftCost(
            kind="cloud", chances=tuple(float(chance) for chance in facts["by_depth"])
        ),
    )


def _read(path: Path, make: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return make(read_json(path))
    except ProfileError as error:
        raise PlanError(f"not readable facts of a draft head: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path}: does not describe a draft head ({error!r})") from error
