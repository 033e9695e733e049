"""The options of `splitpoint plan`, in groups: machines, limits, evidence, choices, output."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

import typer

from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.errors import PlanError
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
from splitpoint.views.sizes import MOST_TBT_S, MOST_TTFT_S, parse_size

if TYPE_CHECKING:
    from optimizer.search.problem import Objective

# A loss that few readers notice; a plan that gives up more says so because it was asked to.
DEFAULT_MAX_QUALITY_DROP: Final = "3"
# What people accept, and so what a plan keeps unless it is told otherwise.
DEFAULT_MAX_TBT: Final = "0.15"
DEFAULT_MAX_TTFT: Final = "3"
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
class LimitOptions:
    """What the plan must keep."""

    PANEL: ClassVar = "Limits"

    edge_memory: Annotated[
        str | None,
        typer.Option(help="Memory of the edge process, such as 512MiB.", metavar="SIZE"),
    ] = None
    cloud_memory: Annotated[
        str | None, typer.Option(help="Memory of the server, all sessions.", metavar="SIZE")
    ] = None
    cloud_memory_per_session: Annotated[
        str | None, typer.Option(help="KV cache of one session there.", metavar="SIZE")
    ] = None
    max_ttft: Annotated[
        str,
        typer.Option(
            help="Most seconds to the first token, over an open connection; 'none' for no limit.",
            metavar="S",
        ),
    ] = DEFAULT_MAX_TTFT
    max_tbt: Annotated[
        str,
        typer.Option(
            help="Most seconds between tokens, up to the longest sequence; 'none' for no limit.",
            metavar="S",
        ),
    ] = DEFAULT_MAX_TBT
    max_quality_drop: Annotated[
        str,
        typer.Option(
            help="Most percent of perplexity to give up; 'none' for no limit.", metavar="PCT"
        ),
    ] = DEFAULT_MAX_QUALITY_DROP
    prompt_tokens: Annotated[int, typer.Option(help="Prompt that TTFT is predicted for.")] = 128
    sessions: Annotated[int, typer.Option(help="Sessions that share the server.")] = 1

    def limits(self) -> Limits:
        """The options as Limits; BadParameter for one that is not positive or infinite."""
        max_quality_drop_pct = _number(self.max_quality_drop, "--max-quality-drop", "percentage")
        max_ttft_s = _number(self.max_ttft, "--max-ttft", "number of seconds")
        max_tbt_s = _number(self.max_tbt, "--max-tbt", "number of seconds")
        if math.inf in (max_ttft_s, max_tbt_s, max_quality_drop_pct):
            raise typer.BadParameter("an infinite limit: write 'none' instead")
        for option, limit_s, most_s in (
            ("--max-tbt", max_tbt_s, MOST_TBT_S),
            ("--max-ttft", max_ttft_s, MOST_TTFT_S),
        ):
            if limit_s is not None and limit_s > most_s:
                raise typer.BadParameter(
                    f"{option} {limit_s:g} is in seconds; for {limit_s:g} ms write "
                    f"{limit_s / 1e3:g}, or 'none' for no limit"
                )
        try:
            return Limits(
                edge_memory_bytes=_size(self.edge_memory, "--edge-memory"),
                cloud_memory_bytes=_size(self.cloud_memory, "--cloud-memory"),
                cloud_memory_per_session_bytes=_size(
                    self.cloud_memory_per_session, "--cloud-memory-per-session"
                ),
                max_ttft_s=max_ttft_s,
                max_tbt_s=max_tbt_s,
                max_quality_drop_pct=max_quality_drop_pct,
                prompt_tokens=self.prompt_tokens,
                num_sessions=self.sessions,
            )
        except PlanError as error:
            raise typer.BadParameter(str(error)) from error

    def without_defaults(self, asked: Collection[str]) -> LimitOptions | None:
        """These limits less those on time that nobody asked for; None: all were asked for.

        asked: names of the options that were given, see `given_options`.
        """
        lifted = replace(
            self,
            max_tbt=self.max_tbt if "max_tbt" in asked else "none",
            max_ttft=self.max_ttft if "max_ttft" in asked else "none",
        )
        return None if lifted == self else lifted


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
        Path | None, typer.Option(help="Bundle with a draft head: plan with its figures as well.")
    ] = None
    ngram_acceptance: Annotated[
        float | None,
        typer.Option(
            help="How often a guess of prompt look-up is right: plan with it as well.",
            min=0,
            max=1,
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


def _number(text: str, option: str, what: str) -> float | None:
    """The number of an option; None for 'none'."""
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: give a {what}, or 'none'") from None


def _size(text: str | None, option: str) -> int | None:
    return None if text is None else parse_size(text, option)
