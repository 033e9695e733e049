"""The limits of `splitpoint plan`: memory, times, quality, and how surely they are kept."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Final

import typer

from optimizer.artifacts.prediction import Limits
from optimizer.errors import PlanError
from splitpoint.views.sizes import MOST_TBT_S, MOST_TTFT_S, parse_size

# A loss that few readers notice; a plan that gives up more says so because it was asked to.
DEFAULT_MAX_QUALITY_DROP: Final = "3"
# What people accept, and so what a plan keeps unless it is told otherwise.
DEFAULT_MAX_TBT: Final = "0.15"
DEFAULT_MAX_TTFT: Final = "3"


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
    max_energy: Annotated[
        float | None,
        typer.Option(
            help="Most joules of the device for a token, as its sensor measures them; needs a "
            "profile with measured watts.",
            metavar="J",
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(help="Most money for a million tokens; needs a price.", metavar="MONEY"),
    ] = None
    quantile: Annotated[
        float,
        typer.Option(
            help="Keep the limits on TTFT, TBT, edge memory, energy and cost with this "
            "probability: 0.5 as predicted, 0.9 nine times of ten, by how sure the predictions are."
        ),
    ] = 0.5
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
                quantile=self.quantile,
                max_joules_per_token=self.max_energy,
                max_cost_per_million=self.max_cost,
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
