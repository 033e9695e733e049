"""What is known of each weight precision of the front, in one place.

A front's matrices have 4, 8, 16 or 32 bits. For each: how the file stores them, what a weight takes
in memory, in which precision it is computed, and which of a device profile's kernels that is.
To add a precision, add an entry to `FRONT_KERNELS`.

Stored bytes follow the formats: at 4 and 8 bits blocks of 32 weights with one fp32 scale, at 4 bits
a 4-bit zero point too (MatMulNBits); 16 and 32 bits are plain tensors. Bytes in memory were
measured with onnxruntime 1.32 on x86-64 (difference between fronts of 3, 10 and 20 layers;
`benchmarks/planning/predict_edge.py` checks them anew).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hwprofiles.profiles.device import Compute, DeviceProfile, Kernel
from optimizer.errors import PlanError

BLOCK_SIZE: Final = 32
SCALE_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontKernel:
    """One weight precision of the front.

    block_bytes: scale and zero point of 32 weights (0: not quantized). computed_bits: bits that a
    step reads and computes with; 16-bit weights are widened to 32 while loading. compute: the type
    of the arithmetic unless exact results are asked for. embedding_bits: bits of the embedding in a
    front of this precision; its error reaches every layer and one row a token is read, so it never
    has fewer than 8.

    resident_bytes_per_weight: memory after loading, the kernel's re-packed copy included.
    head_transient_bytes_per_weight: what packing a vocabulary-sized head takes and frees after
    loading. head_leftover_bytes_per_weight: what stays with the allocator, where later steps reuse
    it.
    """

    bits: int
    block_bytes: float = 0.0
    computed_bits: int
    compute: Compute
    embedding_bits: int
    resident_bytes_per_weight: float
    head_transient_bytes_per_weight: float
    head_leftover_bytes_per_weight: float = 0.0

    def stored_bytes(self, num_weights: int) -> float:
        """Bytes of a matrix in the file: its bits, and the scales and zero points of its blocks."""
        return num_weights * (self.bits / 8 + self.block_bytes / BLOCK_SIZE)

    def embedding_bytes(self, num_weights: int) -> float:
        """Bytes of the embedding in the file. A quantized one has a zero point of a byte in every
        block (GatherBlockQuantized)."""
        zero_points = num_weights / BLOCK_SIZE if self.block_bytes else 0.0
        return front_kernel(self.embedding_bits).stored_bytes(num_weights) + zero_points

    def on(self, device: DeviceProfile, *, exact: bool) -> Kernel:
        """The device's kernel for this precision: int8 arithmetic for quantized weights, or fp32
        when `exact`. ProfileError when the device has none."""
        return device.kernel(self.computed_bits, compute="fp32" if exact else self.compute)


FRONT_KERNELS: Final[Mapping[int, FrontKernel]] = {
    kernel.bits: kernel
    for kernel in (
        FrontKernel(
            bits=4,
            block_bytes=SCALE_BYTES + 0.5,
            computed_bits=4,
            compute="int8",
            embedding_bits=8,
            resident_bytes_per_weight=0.951,
            head_transient_bytes_per_weight=0.2,
            head_leftover_bytes_per_weight=0.38,
        ),
        FrontKernel(
            bits=8,
            block_bytes=SCALE_BYTES,
            computed_bits=8,
            compute="int8",
            embedding_bits=8,
            resident_bytes_per_weight=1.43,
            head_transient_bytes_per_weight=0.72,
            head_leftover_bytes_per_weight=0.38,
        ),
        FrontKernel(
            bits=16,
            computed_bits=32,
            compute="fp32",
            embedding_bits=16,
            resident_bytes_per_weight=4.041,
            head_transient_bytes_per_weight=4.0,
        ),
        FrontKernel(
            bits=32,
            computed_bits=32,
            compute="fp32",
            embedding_bits=32,
            resident_bytes_per_weight=4.041,
            head_transient_bytes_per_weight=4.0,
        ),
    )
}


def front_kernel(bits: int) -> FrontKernel:
    """The kernel for weights of `bits`; PlanError when fronts have no such precision."""
    if bits not in FRONT_KERNELS:
        raise PlanError(f"front bits {bits}: choose one of {tuple(FRONT_KERNELS)}")
    return FRONT_KERNELS[bits]
