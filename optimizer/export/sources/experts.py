"""Experts that a checkpoint stores one by one, put together as transformers 5 computes them.

STEM.experts.3.gate_proj.weight [I, D], .up_proj.weight [I, D], .down_proj.weight [D, I]
-> STEM.experts.gate_up_proj [E, 2 I, D] (gate first), STEM.experts.down_proj [E, D, I]
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final

import torch
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.sources.packed.assembly import AssembledTensor, Assembly, RawReader
from optimizer.export.sources.safetensors_header import StoredTensor

_EXPERT: Final = re.compile(r"(?P<stem>.+\.experts)\.(?P<number>\d+)\.(?P<part>\w+)\.weight")
# What transformers calls the matrices of all experts, and whose they are.
_FUSED: Final = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def fused_experts(
    stored: Mapping[str, StoredTensor], wanted: Collection[str], read: RawReader
) -> Assembly:
    """The matrices of all experts that the architecture asks for and the files hold one by one.

    wanted: the names of the architecture's tensors. read: gives one stored matrix. Raises
    ModelError where an expert is missing, or is of another shape than the first.
    """
    experts: dict[str, dict[tuple[int, str], str]] = {}
    for name in stored:
        if found := _EXPERT.fullmatch(name):
            number, part = int(found["number"]), found["part"]
            experts.setdefault(found["stem"], {})[number, part] = name
    weights: dict[str, AssembledTensor] = {}
    used: set[str] = set()
    for stem, names in experts.items():
        for fused, parts in _FUSED.items():
            if f"{stem}.{fused}" not in wanted:
                continue
            rows = _in_order(stored, stem, names, parts)
            weights[f"{stem}.{fused}"] = _fused(f"{stem}.{fused}", rows, read)
            used.update(tensor for row in rows for tensor in row.names)
    return Assembly(weights=weights, used=frozenset(used))


class _Expert:
    """The stored matrices that become one expert's rows."""

    def __init__(self, names: tuple[str, ...], tensors: tuple[StoredTensor, ...]) -> None:
        self.names = names
        self.tensors = tensors


def _in_order(
    stored: Mapping[str, StoredTensor],
    stem: str,
    names: Mapping[tuple[int, str], str],
    parts: tuple[str, ...],
) -> list[_Expert]:
    count = 1 + max(number for number, _ in names)
    rows = []
    for number in range(count):
        for part in parts:
            if (number, part) not in names:
                file = stored[next(iter(names.values()))].file
                raise ModelError(f"{file}: the tensor {stem}.{number}.{part}.weight is missing")
        chosen = tuple(names[number, part] for part in parts)
        rows.append(_Expert(chosen, tuple(stored[name] for name in chosen)))
    shapes = {tensor.shape for row in rows for tensor in row.tensors}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        first = rows[0].tensors[0]
        raise ModelError(f"{first.origin}: experts of different shapes; fetch the model again")
    return rows


def _fused(name: str, rows: list[_Expert], read: RawReader) -> AssembledTensor:
    first = rows[0].tensors[0]
    outputs, inputs = first.shape

    def join() -> Tensor:
        matrices = [torch.cat([read(tensor) for tensor in row.tensors]) for row in rows]
        return torch.stack(matrices)

    return AssembledTensor(
        stored=StoredTensor(
            file=first.file,
            name=name,
            dtype=first.dtype,
            shape=(len(rows), len(rows[0].tensors) * outputs, inputs),
            num_bytes=sum(tensor.num_bytes for row in rows for tensor in row.tensors),
        ),
        read=join,
    )
