"""Seconds of the front, one value at a time: what `optimizer.cost.edge` must equal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hwprofiles.profiles.device import DeviceProfile, Kernel
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.weights import (
    Matrix,
    front_layer_bytes,
    layer_matrices,
)
from tests.optimizer.reference.rates import attention_s, layer_rest_s, matrix_s


def front_matrix_bytes(num_weights: int, bits: int) -> float:
    """Codes, and at 4 and 8 bits scales (and zero points) of blocks of 32."""
    if bits == 4:
        return num_weights * (4 / 8 + 4.5 / 32)
    if bits == 8:
        return num_weights * (1 + 4 / 32)
    return num_weights * bits / 8


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
    layer_bits: tuple[int, ...] = (),
) -> StepTime:
    """Seconds of one forward pass of `num_rows` tokens with `position` tokens already cached.

    Covers the embedding look-up and layers [0, split); with split = L the head of one row too.
    `layer_bits`: bits of each layer where they differ (mixed precision); `weight_bits` are then
    the embedding's and the head's. Raises ProfileError when the device has no kernel for these
    precisions.
    """
    bits_of_layer = layer_bits or (weight_bits,) * split
    layers = Counter(
        (_computed_bits(bits), geometry.window_of_layer(layer))
        for layer, bits in enumerate(bits_of_layer)
    )
    kernels = {
        bits: front_kernel(device, bits, exact=exact)
        for bits in {_computed_bits(weight_bits), *(bits for bits, _ in layers)}
    }
    kernel = kernels[_computed_bits(weight_bits)]
    cache = device.attention_kernel(kv_bits)
    tokens = position + num_rows
    working_set = geometry.kv_bytes(num_layers=split, num_tokens=tokens, kv_bits=kv_bits) + sum(
        count * front_layer_bytes(geometry, bits) for (bits, _), count in layers.items()
    )

    def seconds_of(matrix: Matrix, bits: int, rows: int) -> float:
        return matrix_s(
            kernels[bits],
            num_weights=matrix.num_weights,
            matrix_bytes=front_matrix_bytes(matrix.num_weights, bits),
            num_rows=rows,
            working_set_bytes=working_set,
        )

    def attention_of(window: int | None) -> float:
        return attention_s(
            cache,
            num_rows=num_rows,
            num_tokens=tokens if window is None else min(tokens, window + num_rows - 1),
            num_heads=geometry.num_heads,
            num_kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            working_set_bytes=working_set,
        )

    matrices = {
        bits: sum(seconds_of(matrix, bits, num_rows) for matrix in layer_matrices(geometry))
        for bits in {bits for bits, _ in layers}
    }
    attention = {window: attention_of(window) for window in {window for _, window in layers}}
    rest = {
        bits: layer_rest_s(
            kernels[bits],
            device.overheads,
            width=geometry.hidden_size,
            inner=geometry.intermediate_size,
            num_rows=num_rows,
            working_set_bytes=working_set,
        )
        for bits in {bits for bits, _ in layers}
    }
    head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
    whole = split == geometry.num_layers
    return StepTime(
        matrices_s=sum(count * matrices[bits] for (bits, _), count in layers.items()),
        attention_s=sum(count * attention[window] for (_, window), count in layers.items()),
        elementwise_s=sum(count * rest[bits] for (bits, _), count in layers.items()),
        head_s=seconds_of(head, _computed_bits(weight_bits), 1) if whole else 0.0,
        step_s=device.overheads.step_s.effective
        + num_rows * geometry.hidden_size * kernel.lookup_s_per_element,
    )


def _computed_bits(bits: int) -> int:
    """16-bit weights are widened to 32 at load."""
    return 32 if bits > 8 else bits


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
    layer_bits: tuple[int, ...] = (),
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
            layer_bits=layer_bits,
        ).total_s
        for start in range(0, num_tokens, chunk)
    )
