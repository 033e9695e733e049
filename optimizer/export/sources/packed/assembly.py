"""Weights that are made of several stored tensors, by the name that the architecture gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.sources.packed.matrix_grid import MatrixGrid
from optimizer.export.sources.safetensors_header import StoredTensor

# Reads one tensor as it is stored.
RawReader = Callable[[StoredTensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledTensor:
    """One weight. stored: its name, its shape, and as its type the plain one that it is read in.

    read: gives it. grid: gives its codes and scales where it has them.
    """

    stored: StoredTensor
    read: Callable[[], Tensor]
    grid: Callable[[], MatrixGrid] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """Weights by name. used: the stored tensors that they are made of. left_out: the stored tensors
    that play no part in a build (scales of activations)."""

    weights: dict[str, AssembledTensor] = field(default_factory=dict)
    used: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()


class PackedFormat(Protocol):
    """How one quantization method stores weights."""

    @property
    def name(self) -> str:
        """The method, as people call it."""
        ...

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """The weights that are stored packed. Reads no large tensor. Raises ModelError for parts
        that are missing or of wrong shapes."""
        ...


def part_of(stored: Mapping[str, StoredTensor], stem: str, part: str) -> StoredTensor:
    """The stored tensor STEM.PART. Raises ModelError where it is missing."""
    found = stored.get(f"{stem}.{part}")
    if found is None:
        origin = next(tensor for name, tensor in stored.items() if name.startswith(f"{stem}."))
        raise ModelError(
            f"{origin.file}: the tensor {stem}.{part} is missing; the download is incomplete"
        )
    return found


def check_shape(tensor: StoredTensor, shape: tuple[int, ...], why: str) -> None:
    """Raises ModelError where the stored tensor has another shape."""
    if tensor.shape != shape:
        raise ModelError(
            f"{tensor.origin} has shape {list(tensor.shape)}, {why} asks for {list(shape)}; "
            "the quantization_config is of another model, or the file is"
        )


def weight_like(packed: StoredTensor, stem: str, shape: tuple[int, ...]) -> StoredTensor:
    """The weight STEM.weight of this shape, as if it were stored plainly where `packed` is."""
    return StoredTensor(
        file=packed.file,
        name=f"{stem}.weight",
        dtype="F32",
        shape=shape,
        num_bytes=packed.num_bytes,
    )
