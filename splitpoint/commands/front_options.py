"""What a plan may choose of the front: how it computes, and whether it streams layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from splitpoint.commands.choices import completed, one_of

if TYPE_CHECKING:
    from hwprofiles.profiles.device import DeviceProfile

STREAMINGS: Final = ("auto", "on", "off")


@dataclass(frozen=True, kw_only=True)
class FrontChoiceOptions:
    """See the module's docstring."""

    stream_weights: Annotated[
        str,
        typer.Option(
            help="Layers that do not fit in memory are read from storage in every step: auto "
            "(where nothing else fits), on (considered beside all else), or off.",
            autocompletion=completed(STREAMINGS),
        ),
    ] = "auto"
    exact_front: Annotated[
        bool, typer.Option(help="Front kernels compute in float32 (see build).")
    ] = False

    def check_streaming(self, *, is_cut: bool) -> None:
        """BadParameter for another value, and where the front `is_cut` for a split that moves."""
        one_of(self.stream_weights, STREAMINGS, "--stream-weights")
        if self.stream_weights == "on" and is_cut:
            raise typer.BadParameter("--stream-weights on: not with --segments")

    def may_stream(self, edge: DeviceProfile, *, is_cut: bool) -> bool:
        """Whether layers may be read from storage where nothing else fits."""
        known = edge.storage_read_bytes_per_s is not None
        return self.stream_weights == "auto" and not is_cut and known
