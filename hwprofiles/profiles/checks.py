"""What every part of a device profile must satisfy: known sources, usable numbers, rising order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from hwprofiles.errors import ProfileError

# Efficiencies above 1 are possible: a cache can beat a data sheet's memory bandwidth. Ours.
MOST_EFFICIENCY: Final = 1.5
# Fields whose number may be zero; all others must be positive.
MAY_BE_ZERO: Final = (
    "spread",
    "dispatch_s",
    "fixed_s",
    "working_set_bytes",
    "matrix_bytes",
    "width",
    "packed_width",
    "lookup_s_per_element",
    "num_weights",
    "encode_fixed_s",
    "encode_s_per_element",
    "decode_fixed_s",
    "decode_s_per_element",
    "drop_after_s",
    "one_row",
    "many_rows",
    "message",
    "memory",
    "power",
    "common",
)
# Fields whose number may be negative: the rest of a layer can be less than nothing.
MAY_BE_NEGATIVE: Final = ("seconds",)


def check_part(where: str, part: Any, sources: Mapping[str, object]) -> None:
    """Raise ProfileError unless the dataclass `part` names known sources and usable numbers.

    `where` starts the message; `sources` holds the keys that may be named.
    """
    for name in ("source", "efficiency_source"):
        key = getattr(part, name, None)
        if key is not None and key not in sources:
            raise ProfileError(f"{where}: unknown source {key!r}; sources are {sorted(sources)}")
    efficiency = getattr(part, "efficiency", 1.0)
    if not 0 < efficiency <= MOST_EFFICIENCY:
        raise ProfileError(f"{where}: efficiency {efficiency} lies outside (0, {MOST_EFFICIENCY}]")
    if efficiency != 1.0 and part.efficiency_source is None:
        raise ProfileError(f"{where}: an efficiency factor needs an efficiency_source")
    for item in fields(part):
        value = getattr(part, item.name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if not _is_usable(item.name, value):
            raise ProfileError(f"{where}: {item.name} must be positive, not {value}")


def _is_usable(name: str, value: float) -> bool:
    if not math.isfinite(value):
        return False
    if name in MAY_BE_NEGATIVE:
        return True
    return value > 0 or (value == 0 and name in MAY_BE_ZERO)


def check_rising(where: str, name: str, values: Sequence[Any]) -> None:
    """Raise ProfileError unless `values` has an item and every item is above the one before."""
    if not values:
        raise ProfileError(f"{where}: {name} is empty")
    if any(second <= first for first, second in itertools.pairwise(values)):
        raise ProfileError(f"{where}: {name} must be listed in rising order, without repeats")


def check_kernel(where: str, kernel: Any) -> None:
    """Raise ProfileError unless the points of a kernel's curves are in rising order."""
    decode = [(point.matrix_bytes, point.working_set_bytes) for point in kernel.decode.points]
    check_rising(where, "decode", decode)
    batch = [
        (point.num_weights, point.working_set_bytes, point.num_rows)
        for point in kernel.batch.points
    ]
    check_rising(where, "batch", batch)
    layers = [
        (point.width, point.working_set_bytes, point.num_sessions, point.num_rows)
        for point in kernel.layers
    ]
    if layers:
        check_rising(where, "layers", layers)


def walk(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every dataclass inside `part` with its dotted path, depth first."""
    if is_dataclass(part) and not isinstance(part, type):
        if path:
            yield path, part
        for item in fields(part):
            below = f"{path}.{item.name}" if path else item.name
            yield from walk(getattr(part, item.name), below)
    elif isinstance(part, tuple):
        for index, value in enumerate(part):
            yield from walk(value, f"{path}[{index}]")
    elif isinstance(part, dict):
        for key, value in part.items():
            yield from walk(value, f"{path}.{key}")
