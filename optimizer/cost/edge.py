"""Seconds that the front takes on the device: one step, and a prompt in chunks.

The model is ours; each part is what the profiler measured in isolation, added up:

    step = step_s + rows * D * lookup_s_per_element + sum over layers of
             sum over matrices of (dispatch_s + max(bytes / decode_rate, 2 rows K N / flop_rate))
           + attention(rows, tokens)
           + layer_s + extra elementwise bytes / elementwise_rate

`decode_rate` depends on the working set of the whole step (weights and KV walked), because a
front that fits in a cache runs several times faster than one that does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.device import DeviceProfile, Kernel
from hwprofiles.rates import attention_s, matrix_s
from optimizer.cost.weights import (
    Matrix,
    front_layer_bytes,
    front_matrix_bytes,
    layer_matrices,
)
from optimizer.geometry import ModelGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Where one forward pass of the front spends its time, in seconds."""

    matrices_s: float
    attention_s: float
    elementwise_s: float
    head_s: float
    step_s: float

    @property
    def total_s(self) -> float:
        """The sum of the parts."""
        return self.matrices_s + self.attention_s + self.elementwise_s + self.head_s + self.step_s


def front_kernel(device: DeviceProfile, weight_bits: int, *, exact: bool) -> Kernel:
    """The kernel that the front uses: int8 compute for 4 and 8 bits, unless fp32 is asked for.

    16-bit weights are stored so and widened once at load: their kernel is that of 32 bits.
    """
    if weight_bits > 8:
        return device.kernel(32, compute="fp32")
    return device.kernel(weight_bits, compute="fp32" if exact else "int8")


def front_step(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    split: int,
    weight_bits: int,
    kv_bits: int,
    num_rows: int,
    position: int,
    exact: bool = False,
) -> StepTime:
    """Seconds of one forward pass of `num_rows` tokens with `position` tokens already cached.

    Covers the embedding look-up and layers [0, split); with split = L the head of one row too.
    Raises ProfileError when the device has no kernel for these precisions.
    """
    kernel = front_kernel(device, weight_bits, exact=exact)
    weight_bits = max(weight_bits, 32) if weight_bits > 8 else weight_bits
    cache = device.attention_kernel(kv_bits)
    tokens = position + num_rows
    working_set = split * front_layer_bytes(geometry, weight_bits)
    working_set += geometry.kv_bytes(num_layers=split, num_tokens=tokens, kv_bits=kv_bits)

    def seconds_of(matrix: Matrix, rows: int) -> float:
        return matrix_s(
            kernel,
            num_weights=matrix.num_weights,
            matrix_bytes=front_matrix_bytes(matrix.num_weights, weight_bits),
            num_rows=rows,
            working_set_bytes=working_set,
        )

    attention = attention_s(
        cache,
        num_rows=num_rows,
        num_tokens=tokens,
        num_heads=geometry.num_heads,
        head_dim=geometry.head_dim,
        working_set_bytes=working_set,
    )
    row_bytes = 4 * (4 * geometry.hidden_size + 3 * geometry.intermediate_size)
    extra_bytes = (num_rows - 1) * row_bytes
    overheads = device.overheads
    elementwise = overheads.layer_s.effective
    elementwise += extra_bytes / overheads.elementwise_bytes_per_s.effective
    head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
    return StepTime(
        matrices_s=split * sum(seconds_of(matrix, num_rows) for matrix in layer_matrices(geometry)),
        attention_s=split * attention,
        elementwise_s=split * elementwise,
        head_s=seconds_of(head, 1) if split == geometry.num_layers else 0.0,
        step_s=overheads.step_s.effective
        + num_rows * geometry.hidden_size * kernel.lookup_s_per_element,
    )


def front_prefill(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    split: int,
    weight_bits: int,
    kv_bits: int,
    num_tokens: int,
    chunk: int,
    exact: bool = False,
) -> tuple[float, ...]:
    """Seconds of each chunk of a prompt of `num_tokens`, in order; the last may be shorter."""
    return tuple(
        front_step(
            device,
            geometry,
            split=split,
            weight_bits=weight_bits,
            kv_bits=kv_bits,
            num_rows=min(chunk, num_tokens - start),
            position=start,
            exact=exact,
        ).total_s
        for start in range(0, num_tokens, chunk)
    )
