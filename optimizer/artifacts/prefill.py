"""The places where a prompt's rows may be computed, by the names that plans and options use."""

from __future__ import annotations

from typing import Final, Literal

PrefillPlace = Literal["edge", "cloud", "both"]
PREFILL_PLACES: Final[tuple[PrefillPlace, ...]] = ("edge", "cloud", "both")
PLANNED: Final = "plan"  # in a request: where the plan says
