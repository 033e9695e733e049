"""The options of `splitpoint plan`, in groups: machines, limits, evidence, choices, output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

import typer

from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.search.problem import OBJECTIVES
from splitpoint.commands.choices import (
    check_level,
    completed,
    device_profiles,
    levels,
    link_profiles,
    models,
    one_of,
    planned_places,
)
from splitpoint.commands.front_options import FrontChoiceOptions
from splitpoint.commands.option_groups import JsonOption

if TYPE_CHECKING:
    from optimizer.search.problem import Objective

DEFAULT_OBJECTIVE: Final = "cloud-cost"


@dataclass(frozen=True, kw_only=True)
class DeploymentOptions:
    """Which model on which machines, over which link."""

    model: Annotated[
        str,
        typer.Option(
            help="Model folder, GGUF file, or a known model's name such as llama-2-7b "
            "(planning needs no weights).",
            show_default=False,
            autocompletion=completed(models),
        ),
    ]
    edge: Annotated[
        str,
        typer.Option(
            help="Device profile: a shipped one's name, or a file.",
            show_default=False,
            autocompletion=completed(device_profiles),
        ),
    ]
    cloud: Annotated[
        str,
        typer.Option(
            help="The server's device profile.",
            show_default=False,
            autocompletion=completed(device_profiles),
        ),
    ]
    link: Annotated[
        str,
        typer.Option(
            help="Link: a name, legs (wifi+internet), figures (rtt=40ms,up=10,down=50), or a file.",
            show_default=False,
            autocompletion=completed(link_profiles),
        ),
    ]
    epsilon: Annotated[
        float,
        typer.Option(
            help="Take the link as it is at least as good as with probability 1 - epsilon: "
            "0.5 its median, 0.05 a bad moment."
        ),
    ] = 0.5

    def check(self) -> None:
        """Raise BadParameter for an epsilon that is no probability."""
        if not 0 < self.epsilon < 1:
            raise typer.BadParameter(f"--epsilon {self.epsilon}: must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class EvidenceOptions:
    """What was measured of this model before."""

    PANEL: ClassVar = "Measurements to plan with"

    certificate: Annotated[
        list[Path] | None,
        typer.Option(help="Quality of the codec levels: a bundle, or JSON of 'certify'."),
    ] = None
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            help="Losses of single layers ('splitpoint sensitivity'): fronts of mixed "
            "precision are planned as well."
        ),
    ] = None
    draft: Annotated[
        Path | None,
        typer.Option(
            help="Bundle with a draft head of either side: plan with its figures as well."
        ),
    ] = None
    ngram_acceptance: Annotated[
        float | None,
        typer.Option(
            help="How often a guess of prompt look-up is right: plan with it as well.",
            min=0,
            max=1,
        ),
    ] = None
    tokens_per_round_trip: Annotated[
        float | None,
        typer.Option(
            help="What a run with all drafters reported: plan with them as well.",
            min=1,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(FrontChoiceOptions):
    """What the plan optimizes, and among which configurations."""

    PANEL: ClassVar = "Objective and choices"

    objective: Annotated[
        str,
        typer.Option(
            help=f"What to make best: {', '.join(OBJECTIVES)}.",
            autocompletion=completed(OBJECTIVES),
        ),
    ] = DEFAULT_OBJECTIVE
    slack: Annotated[
        float,
        typer.Option(help="Percent of the objective that better quality may cost.", min=0, max=99),
    ] = 1.0
    answer_tokens: Annotated[
        int | None, typer.Option(help="Usual answer; TBT is predicted in its middle (128).", min=1)
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer together that must be possible (2048; the "
            "objective 'context' looks for the longest)."
        ),
    ] = None
    split: Annotated[
        str | None, typer.Option(help="Only these splits: 10, or 8-12.", metavar="N[-M]")
    ] = None
    level: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this compression level (can be repeated).", autocompletion=completed(levels)
        ),
    ] = None
    back_from: Annotated[
        int | None, typer.Option(help="First layer the server holds, where below the split.", min=0)
    ] = None
    segments: Annotated[
        int,
        typer.Option(
            help="Segments to cut the front into, so that the split can move during an answer. "
            "From 2 on the server holds every layer.",
            min=1,
        ),
    ] = 1
    prefill: Annotated[
        str,
        typer.Option(
            help="Where the prompt's rows are computed: edge; cloud or both (token ids go up, with "
            "--back-from 0); auto (wherever the first token comes soonest). Other places than edge "
            "may change tokens where both sides hold different weights.",
            autocompletion=completed(planned_places),
        ),
    ] = "edge"

    def check(self) -> None:
        """Raise BadParameter for an unknown objective, level or an empty range of splits."""
        self.wanted()
        self.splits()
        self.place()
        self.held_from()
        self.check_streaming(is_cut=self.segments > 1)
        for level in self.level or ():
            check_level(level)

    def wanted(self) -> Objective:
        """The objective; BadParameter for an unknown one."""
        one_of(self.objective, OBJECTIVES, "--objective")
        return next(known for known in OBJECTIVES if known == self.objective)

    def place(self) -> PrefillPlace | Literal["auto"]:
        """Where prompts may be computed; BadParameter for no such place, and for one that needs
        layers which the server would not hold."""
        one_of(self.prefill, planned_places(), "--prefill")
        if self.prefill == "auto":
            return "auto"
        place = next(known for known in PREFILL_PLACES if known == self.prefill)
        if place != "edge" and self.held_from() != 0:
            raise typer.BadParameter(
                f"--prefill {place}: the server must hold every layer (--back-from 0)"
            )
        return place

    def held_from(self) -> int | None:
        """The first layer that the server holds; None: the split. BadParameter for another one than
        0 where the front is cut."""
        if self.segments == 1:
            return self.back_from
        if self.back_from:
            raise typer.BadParameter(
                f"--segments with --back-from {self.back_from}: the server must hold every layer"
            )
        return 0

    def splits(self) -> range | None:
        """The splits to choose among; None: all of them."""
        if self.split is None:
            return None
        first, _, last = self.split.partition("-")
        try:
            chosen = range(int(first), int(last or first) + 1)
        except ValueError:
            raise typer.BadParameter(f"--split {self.split!r}: give 10, or 8-12") from None
        if not chosen:
            raise typer.BadParameter(f"--split {self.split!r}: no split in it")
        return chosen


@dataclass(frozen=True, kw_only=True)
class PlanOutputOptions:
    """Where the answer goes."""

    PANEL: ClassVar = "Output"

    out: Annotated[Path | None, typer.Option(help="Write the plan here.")] = None
    plot: Annotated[
        Path | None, typer.Option(help="Draw latency, memory, front and map here (PNG).")
    ] = None
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto",
            help="Print the Pareto front: every plan that no other one beats in TBT, cloud "
            "compute, edge memory and quality at once.",
        ),
    ] = False
    as_json: JsonOption = False
