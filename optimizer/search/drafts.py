"""Ways to draft that a plan may choose among: a bundle's trained head, and prompt look-up.

Every number of guesses up to eight is a choice of its own; the device settles the number at run
time (`optimizer/policy/draft_length.py`), the plan decides who drafts and counts on the best
number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.bundle import checked_files
from optimizer.cost.request import DraftedRound, expected_tokens
from optimizer.errors import PlanError
from optimizer.search.problem import DraftOption

MOST_DRAFTS = 8
FACTS_NAME = "head.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCost:
    """One drafter: how often a guess is right, seconds of one guess, bytes on the device, and
    the only split it works at (None: any).

    That every guess of a round is right with the same probability, whatever came before, is an
    assumption; later guesses of a head are right less often.
    """

    kind: str
    acceptance: float
    guess_s: float = 0.0
    memory_bytes: float = 0.0
    split: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1 or self.guess_s < 0 or self.memory_bytes < 0:
            raise PlanError(f"drafting by {self.kind}: acceptance must lie between 0 and 1")


def draft_options(cost: DraftCost) -> tuple[DraftOption, ...]:
    """One choice for each number of guesses."""
    return tuple(
        DraftOption(
            kind=cost.kind,
            drafting=DraftedRound(
                num_drafts=count,
                tokens_per_round=expected_tokens(cost.acceptance, count),
                draft_s=count * cost.guess_s,
            ),
            memory_bytes=cost.memory_bytes,
            split=cost.split,
        )
        for count in range(1, MOST_DRAFTS + 1)
    )


def head_of_bundle(bundle: Path) -> DraftCost:
    """The draft head of a bundle with its measured figures. PlanError when it has none."""
    found = [path for path in checked_files(bundle, "draft", ".json") if path.name == FACTS_NAME]
    if not found:
        raise PlanError(f"{bundle}: has no draft head ('splitpoint train-draft')")
    (path,) = found
    try:
        facts = read_json(path)
        return DraftCost(
            kind="head",
            acceptance=float(facts["top1"]),
            guess_s=float(facts["guess_s"]),
            memory_bytes=float(facts["num_bytes"]),
            split=int(facts["split"]),
        )
    except ProfileError as error:
        raise PlanError(f"not readable facts of a draft head: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PlanError(f"{path}: does not describe a draft head ({error!r})") from error
