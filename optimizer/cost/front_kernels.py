"""What is known of each weight precision of the front, in one place.

A front's matrices have 4, 8, 16 or 32 bits. For each: how the file stores them, what a weight takes
in memory, in which precision it is computed, and which of a device profile's kernels that is.
To add a precision, add an entry to `FRONT_KERNELS`.

Stored bytes follow the formats: at 4 and 8 bits blocks of weights with one fp32 scale, at 4 bits a
4-bit zero point too (MatMulNBits); 16 and 32 bits are plain tensors. How many weights are in a
block is the plan's choice (`block_size`). Times count blocks of 32, like a device's profile.

Bytes in memory: the kernels pack a matrix once. Codes take their bits. A block has a scale and a
sum, 4 bytes each, and the kernels go on reading its zero point in the file. All other pages of the
file are given back after loading. Measured
with onnxruntime 1.32 on x86-64 (`benchmarks/edge/weights_in_memory.py`); on an emulated Armv8.2
processor the packed sizes are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hwprofiles.profiles.device import Compute, DeviceProfile, Kernel
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import WeightBlocks
from optimizer.errors import PlanError

BLOCK_SIZE: Final = 32
EXPERT_BLOCK: Final = 32  # of experts, whatever the plan says of the other matrices
LARGE_BLOCK: Final = 64
LARGEST_BLOCK: Final = 128
SCALE_BYTES: Final = 4
PACKED_BLOCK_BYTES: Final = 8  # of a block in the kernels' memory: a scale and a sum


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontKernel:
    """One weight precision of the front.

    block_bytes: scale and zero point of 32 weights (0: not quantized). computed_bits: bits that a
    step reads and computes with; 16-bit weights are widened to 32 while loading, but where the
    device computes in 16 bits (`HALF_KERNEL`). compute: the type
    of the arithmetic unless exact results are asked for. embedding_bits: bits of the embedding in a
    front of this precision; its error reaches every layer and one row a token is read, so it never
    has fewer than 8.

    wide_bytes: of a weight in memory where it is not quantized. transient_bytes: of a weight of the
    matrix that is being packed, beside its packed copy: mapped pages of the file, or the tensor
    that is widened.
    """

    bits: int
    block_bytes: float = 0.0
    computed_bits: int
    compute: Compute
    embedding_bits: int
    wide_bytes: float = 0.0
    transient_bytes: float

    @property
    def is_quantized(self) -> bool:
        """Whether blocks of weights share a scale."""
        return self.block_bytes > 0

    def resident_bytes(self, num_weights: int, block: int) -> float:
        """Bytes of a matrix in memory, packed for the kernels."""
        if not self.is_quantized:
            return num_weights * self.wide_bytes
        zero_point = self.block_bytes - SCALE_BYTES  # the kernels read it in the file
        return num_weights * (self.bits / 8 + (PACKED_BLOCK_BYTES + zero_point) / block)

    def scale_bytes(self, num_weights: int, block: int) -> float:
        """Bytes of the file's scales, which stay mapped until all matrices are packed."""
        return num_weights * SCALE_BYTES / block if self.is_quantized else 0.0

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
            transient_bytes=0.5,
        ),
        FrontKernel(
            bits=8,
            block_bytes=SCALE_BYTES,
            computed_bits=8,
            compute="int8",
            embedding_bits=8,
            transient_bytes=1.0,
        ),
        FrontKernel(
            bits=16,
            computed_bits=32,
            compute="fp32",
            embedding_bits=16,
            wide_bytes=4.041,
            transient_bytes=4.0,
        ),
        FrontKernel(
            bits=32,
            computed_bits=32,
            compute="fp32",
            embedding_bits=32,
            wide_bytes=4.041,
            transient_bytes=4.0,
        ),
    )
}


# Of 16-bit weights on a device that computes in 16 bits. On an emulated Armv8.2 processor its
# kernels read them in the mapped file and pack nothing: 2 bytes each. Others may pack a copy.
HALF_KERNEL: Final = FrontKernel(
    bits=16,
    computed_bits=16,
    compute="fp16",
    embedding_bits=16,
    wide_bytes=2.0,
    transient_bytes=2.0,
)


def front_kernel(bits: int, *, halves: bool = False) -> FrontKernel:
    """The kernel for weights of `bits`; PlanError when fronts have no such precision.

    halves: the device computes in 16 bits.
    """
    if bits == HALF_KERNEL.bits and halves:
        return HALF_KERNEL
    if bits not in FRONT_KERNELS:
        raise PlanError(f"front bits {bits}: choose one of {tuple(FRONT_KERNELS)}")
    return FRONT_KERNELS[bits]


def halves_on(device: DeviceProfile, geometry: ModelGeometry, *, exact: bool) -> bool:
    """Whether `device` computes this model's 16-bit fronts in 16 bits: it was measured so. A server
    profile's 16-bit kernel is another engine's. Exact fronts and experts stay in 32 bits."""
    measured = ((kernel.weight_bits, kernel.compute) for kernel in device.kernels)
    is_front = device.platform.provider is not None
    return is_front and not (exact or geometry.num_experts) and (16, "fp16") in measured


def block_size(blocks: WeightBlocks, bits: int, *, is_down: bool, inputs: int) -> int:
    """Weights of a matrix of `inputs` inputs that share a scale.

    Large blocks at 4 bits: 64 weights, and 128 in the matrix that leads down from the MLP
    (`is_down`). At 8 bits 128. Half as many, but never fewer than 32, where the inputs do not
    divide so.
    """
    size = BLOCK_SIZE
    if blocks == "large" and bits <= 8:
        size = LARGEST_BLOCK if bits == 8 or is_down else LARGE_BLOCK
        while size > BLOCK_SIZE and inputs % size:
            size //= 2
    return size


def widened_note(bits: int) -> str:
    """What to say of weights that take more memory than their bits; empty for others."""
    kernel = front_kernel(bits)
    if kernel.computed_bits == bits:
        return ""
    return (
        f"{bits}-bit front weights are widened to {kernel.computed_bits} bits at load, "
        f"{kernel.computed_bits // 8} bytes each in memory, on devices that do not compute in "
        f"{bits} bits"
    )


def blocks_for(bits: int, wanted: WeightBlocks) -> WeightBlocks:
    """The blocks of a front of `bits` bits. Wide weights have none, which plans call small."""
    return wanted if front_kernel(bits).is_quantized else "small"
