"""What a client opens of a bundle's edge side, beside the front: tokenizer, tables, ladder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from codec.ladder import Ladder
from codec.levels.lossless import LOSSLESS
from codec.slow_path import warn_without_kernel
from edge.device.memory_limit import (
    MemoryLimit,
    needed_memory,
    other_models_bytes,
    runtime_bytes,
)
from edge.device.tokenizer import ChatTokenizer
from hwprofiles.machine_limits import memory_limit_bytes
from optimizer.artifacts.bundle import TEMPLATE_NAME, Bundle, EdgeSettings, tables_name
from optimizer.artifacts.plan import Plan


def planned_limit(
    plan: Plan,
    given: int | None,
    *,
    others: Iterable[Path | str | None] = (),
    sequences: int = 1,
) -> MemoryLimit:
    """The memory that a device may take: bytes given, else those that the plan was made for.

    Where a control group's limit is less, it counts instead: beyond it the system would end the
    process. A group's limit alone counts where the plan needs more than half of it.
    others: bundles of further models on the device, which get their part first.
    """
    planned = None if plan.limits is None else plan.limits.edge_memory_bytes
    asked = given if given is not None or planned is None else int(planned)
    group = memory_limit_bytes()
    other_bytes = other_models_bytes(others, sequences=sequences)
    if asked is None and group is not None:
        needed = needed_memory(plan, runtime_bytes() + other_bytes, sequences).total_bytes
        asked = group if 2 * needed > group else None
    if asked is not None and group is not None:
        asked = min(asked, group)
    return MemoryLimit(asked, other_bytes)


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


def tables_of(bundle: Bundle) -> dict[int, Path]:
    """The codec tables of the bundle's own splits, as far as it has any."""
    names = {split: tables_name(split) for split in bundle.plan.splits}
    return {split: bundle.path(name) for split, name in names.items() if bundle.has(name)}


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
