"""Options with a list or a range of values, checked before anything loads; the nearest is offered.

Each list is read where it is written, and only when it is asked for. Shells ask for the same lists
to complete a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import typer

from hwprofiles.schema.near_names import did_you_mean

DEVICES: Final = ("auto", "cpu", "cuda")
# As edge.draft.registry has them, which loads the runtime.
DRAFTS: Final = ("auto", "off", "ngram", "head", "cloud", "model")
PREFERRED: Final = ("split", "cloud", "edge")
POWER_SETTINGS: Final = ("low", "balanced", "full")
MOVE_WAYS: Final = ("auto", "kv", "ids")
LEAST_MINUTES: Final = 0.5  # of a sustained load
MOST_MINUTES: Final = 240.0


def one_of(value: str, known: Iterable[str], option: str) -> str:
    """`value`, which must be one of `known`; BadParameter that lists them otherwise."""
    names = list(known)
    if value not in names:
        raise typer.BadParameter(
            f"{option} {value}: choose one of {', '.join(names)}{did_you_mean(value, names)}"
        )
    return value


def check_level(value: str, option: str = "--level") -> str:
    """A level's name, "auto" or a number. BadParameter for what is nearly a name.

    A bundle may have names of its own, so another name is left to it.
    """
    known = levels()
    if value in known or value.isdecimal():
        return value
    if hint := did_you_mean(value, known):
        raise typer.BadParameter(f"{option} {value}: no such level{hint}")
    return value


def levels() -> list[str]:
    """Names of the levels that `splitpoint build` makes, and "auto"."""
    from codec.levels.registry import EXTRA_LEVELS, LADDER_LEVELS

    return ["auto", *(level.name for level in (*LADDER_LEVELS, *EXTRA_LEVELS))]


def weight_types() -> list[str]:
    """What a server on a GPU can hold the linear layers' weights in."""
    from cloud.engine.weight_types import WEIGHT_TYPES

    return list(WEIGHT_TYPES)


def kv_types() -> list[str]:
    """What a server on a GPU can keep keys and values in."""
    from cloud.engine.weight_types import KV_TYPES

    return list(KV_TYPES)


def contexts() -> list[str]:
    """Names of the KV policies."""
    from optimizer.policy.kv.registry import KV_POLICIES, OTHER_NAMES

    return [*KV_POLICIES, *OTHER_NAMES]


def prefill_places() -> list[str]:
    """Where a prompt's rows can be computed: where the plan says, or a place."""
    from optimizer.artifacts.prefill import PLANNED, PREFILL_PLACES

    return [PLANNED, *PREFILL_PLACES]


def planned_places() -> list[str]:
    """What a plan can be asked for: a place, or the soonest."""
    from optimizer.artifacts.prefill import PREFILL_PLACES

    return ["auto", *PREFILL_PLACES]


def device_profiles() -> list[str]:
    """Names of the shipped device profiles."""
    from hwprofiles.profiles.catalog import shipped_devices

    return list(shipped_devices())


def link_profiles() -> list[str]:
    """Names of the shipped link profiles."""
    from hwprofiles.links.catalog import link_names

    return list(link_names())


def models() -> list[str]:
    """Names of the models that can be planned without their files."""
    from optimizer.artifacts.specs import shipped_specs

    return list(shipped_specs())


def completed(
    names: Sequence[str] | Callable[[], Iterable[str]],
) -> Callable[[str], list[str]]:
    """What typer's `autocompletion` takes: the names that begin with the word so far."""

    def complete(incomplete: str) -> list[str]:
        known = names() if callable(names) else names
        return [name for name in known if name.startswith(incomplete)]

    return complete


def check_sustained(minutes: float, role: str) -> None:
    """BadParameter for minutes that cannot be meant, and for a server."""
    if minutes and not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        raise typer.BadParameter(
            f"--sustained {minutes:g}: give {LEAST_MINUTES:g} to {MOST_MINUTES:g} minutes, or 0"
        )
    if minutes and role != "edge":
        raise typer.BadParameter("--sustained measures the edge's kernels: give --role edge")
