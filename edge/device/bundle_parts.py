"""What a client opens of a bundle's edge side, beside the front: tokenizer, tables, ladder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from codec.ladder import Ladder
from codec.levels.lossless import LOSSLESS
from codec.slow_path import warn_without_kernel
from decoding.params import shown
from edge.device.memory_limit import (
    MemoryLimit,
    needed_memory,
    other_models_bytes,
    runtime_bytes,
)
from edge.device.tokenizer import ChatTokenizer
from edge.errors import InputError
from hwprofiles.machine_limits import memory_limit_bytes
from hwprofiles.schema.near_names import did_you_mean
from optimizer.artifacts.bundle import DEFAULT_TABLES, TEMPLATE_NAME, Bundle, EdgeSettings
from optimizer.artifacts.codec_tables import AUTO_TABLES
from optimizer.artifacts.plan import Plan


def planned_limit(
    plan: Plan,
    given: int | None,
    *,
    others: Iterable[Path | str | None] = (),
    sequences: int = 1,
    halves: bool = False,
) -> MemoryLimit:
    """The memory that a device may take: bytes given, else those that the plan was made for.

    Where a control group's limit is less, it counts instead: beyond it the system would end the
    process. A group's limit alone counts where the plan needs more than half of it.
    others: bundles of further models on the device, which get their part first. halves: the
    front's 16-bit weights will not be widened.
    """
    planned = None if plan.limits is None else plan.limits.edge_memory_bytes
    asked = given if given is not None or planned is None else int(planned)
    group = memory_limit_bytes()
    other_bytes = other_models_bytes(others, sequences=sequences)
    if asked is None and group is not None:
        needed = needed_memory(plan, runtime_bytes() + other_bytes, sequences, halves).total_bytes
        asked = group if 2 * needed > group else None
    if asked is not None and group is not None:
        asked = min(asked, group)
    return MemoryLimit(asked, other_bytes, halves)


def tokenizer_of(
    bundle: Bundle, settings: EdgeSettings, *, allow_control_tokens: bool
) -> ChatTokenizer:
    """The bundle's tokenizer, with its chat template if it has one."""
    template = bundle.read_text(TEMPLATE_NAME) if bundle.has(TEMPLATE_NAME) else None
    return ChatTokenizer(
        bundle.path("edge/tokenizer.json"),
        template,
        settings,
        allow_control_tokens=allow_control_tokens,
    )


def tables_of(bundle: Bundle, wanted: str = DEFAULT_TABLES) -> dict[str, dict[int, Path]]:
    """The codec tables to load, by name and by the bundle's own splits, as far as it has any.

    wanted: a name, or "auto" for all, the default ones first. Raises InputError for tables that the
    bundle does not have, and BundleError where it has some that cannot be.
    """
    listed = bundle.codec_tables()
    if wanted not in (*listed, AUTO_TABLES):
        raise InputError(
            f"{bundle.root}: no tables {shown(wanted)}: this bundle has {', '.join(listed)} "
            f"(splitpoint pull fetches those of the server){did_you_mean(wanted, listed)}"
        )
    return {
        name: {split: path for split, path in paths.items() if split in bundle.plan.splits}
        for name, paths in listed.items()
        if wanted in (name, AUTO_TABLES)
    }


def codec_of(
    bundle: Bundle, wanted: str
) -> tuple[str, tuple[Path, ...], dict[str, dict[int, Ladder]]]:
    """The first of the wanted tables, the files of all, and their ladders by name and split.

    See `tables_of` and `ladders_of`.
    """
    tables = tables_of(bundle, wanted)
    paths = tuple(path for files in tables.values() for path in files.values())
    ladders = {name: ladders_of(files, bundle.plan) for name, files in tables.items()}
    return next(iter(ladders)), paths, ladders


def ladders_of(tables: Mapping[int, Path], plan: Plan) -> dict[int, Ladder]:
    """The levels at each of the plan's splits; the lossless one alone without tables.

    Warns once a process where rows will be encoded without the compiled kernel.
    """
    hidden_size = plan.model.geometry.hidden_size
    ladders = {
        split: Ladder.load(tables[split], hidden_size=hidden_size)
        if split in tables
        else Ladder.lossless(hidden_size)
        for split in plan.splits
    }
    if not plan.edge_is_whole:
        ladder = ladders[plan.partition.split]
        warn_without_kernel(ladder, plan.level if plan.level in ladder.names else LOSSLESS.name)
    return ladders
