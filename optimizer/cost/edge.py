"""Seconds that the front takes on the device: one step, and a prompt in chunks.

The model is ours; each part is what the profiler measured in isolation, added up:

    step = step_s + rows * D * lookup_s_per_element + sum over layers of
             sum over matrices of (dispatch_s + max(bytes / decode_rate, 2 rows K N / flop_rate))
           + attention(rows, tokens)
           + rest(rows): what whole layers take beyond these

`decode_rate` depends on the working set of the whole step (weights and KV that it reads), because a
front that fits in a cache runs several times faster than one that does not.

`front_steps` is the formula, over many fronts and positions at once; `front_step` asks it for one.

Layers that are read from storage in every pass are read while others compute, so the longer of the
two counts (`optimizer.cost.streaming`).

Where the profile knows what minutes of work do to the machine, and what pauses do, a decoding step
of an answer takes longer (`answer_step_s`). A prompt does not: it comes when the device has
rested, and its chunks follow each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import Floats, Quantity, layer_rest_s, matrix_s
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.attention import attended_s, layers_by_window, window_attention
from optimizer.cost.front_kernels import FrontKernel, front_kernel, halves_on
from optimizer.cost.weights import front_layer_bytes, head_matrix, layer_matrices

LayerBits = tuple[int, ...]  # weight bits of each layer of one front


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Where one forward pass of the front spends its time, in seconds: numbers or arrays."""

    matrices_s: Quantity
    attention_s: Quantity
    elementwise_s: Quantity
    head_s: Quantity
    step_s: Quantity
    reading_s: Quantity = 0.0

    @property
    def total_s(self) -> Quantity:
        """The sum of the parts; or what streamed layers are read in, where that is longer."""
        computing_s = (
            self.matrices_s + self.attention_s + self.elementwise_s + self.head_s + self.step_s
        )
        return np.maximum(computing_s, self.reading_s)


def front_steps(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    layer_bits: Sequence[LayerBits],
    weight_bits: int,
    kv_bits: int,
    num_rows: int,
    positions: Sequence[int],
    exact: bool = False,
    reading_s: Sequence[float] = (),
) -> StepTime:
    """Seconds of one forward pass of `num_rows` tokens, for S fronts and P positions: [S, P].

    layer_bits: for each front, the bits of its layers [0, split); with split = L it runs the head
    for one row too. weight_bits: the bits of the embedding's front and of the head. positions:
    tokens cached before the step. reading_s: what a pass of each front reads storage for, beside
    computing (`optimizer.cost.streaming`; empty: nothing). Raises ProfileError when the device has
    no kernel for these precisions.
    """
    halves = halves_on(device, geometry, exact=exact or any(reading_s))  # else they are widened
    counts = _layers_by_kernel(layer_bits, halves)
    computed_bits = front_kernel(weight_bits, halves=halves).computed_bits
    head_kernel = front_kernel(computed_bits, halves=halves)
    splits = np.array([[len(bits)] for bits in layer_bits])  # [S, 1]
    tokens = np.asarray(positions, dtype=np.float64) + num_rows  # [P]
    kv_bytes = geometry.device_kv_bytes(num_layers=1, num_tokens=1, kv_bits=kv_bits)
    working_set: Floats = splits * tokens * kv_bytes  # [S, P]
    for kernel, count in counts.items():
        working_set = working_set + count * front_layer_bytes(geometry, kernel.bits)

    def seconds_of(kernel: FrontKernel, num_weights: int, rows: int) -> Floats:
        return matrix_s(
            kernel.on(device, exact=exact),
            num_weights=num_weights,
            matrix_bytes=kernel.stored_bytes(num_weights),
            num_rows=rows,
            working_set_bytes=working_set,
        )

    matrices_s, rest_s = np.zeros(working_set.shape), np.zeros(working_set.shape)
    sizes = Counter(matrix.num_weights for matrix in layer_matrices(geometry))
    for kernel, count in counts.items():
        for size, number in sizes.items():
            matrices_s += number * count * seconds_of(kernel, size, num_rows)
        rest_s += count * layer_rest_s(
            kernel.on(device, exact=exact),
            device.overheads,
            width=geometry.hidden_size,
            inner=geometry.intermediate_size,
            num_rows=num_rows,
            working_set_bytes=working_set,
        )
    windows = window_attention(
        device.attention_kernel(kv_bits),
        geometry,
        layers_by_window(geometry, 0, splits),
        num_rows=num_rows,
        working_set_bytes=working_set,
    )
    whole = splits == geometry.num_layers
    head_s = (
        np.where(whole, seconds_of(head_kernel, head_matrix(geometry).num_weights, 1), 0.0)
        if whole.any()
        else np.zeros(splits.shape)
    )
    lookup_s = num_rows * geometry.hidden_size * head_kernel.on(
        device, exact=exact
    ).lookup_s_per_element  # fmt: skip
    return StepTime(
        matrices_s=matrices_s,
        attention_s=attended_s(windows, tokens),
        elementwise_s=rest_s,
        head_s=head_s,
        step_s=device.overheads.step_s.effective + lookup_s,
        reading_s=np.array([[seconds] for seconds in reading_s]) if reading_s else 0.0,
    )


def answer_step_s(device: DeviceProfile, step_s: Quantity, *, waits: bool) -> Quantity:
    """Seconds of a decoding step of an answer, of which the rates say that it takes `step_s`.

    A plan's time between tokens has to hold for minutes, and the profile's rates are of bursts of
    steps right after each other. waits: whether the device waits for a server between its steps.
    """
    lasting_s = step_s / device.sustained_share
    return lasting_s * device.pause_slowdown + device.pause_s if waits else lasting_s


def middle_row(position: int, num_rows: int) -> int:
    """The position of the middle one of `num_rows` rows from `position` on: what each of them takes
    on average when they are computed one by one."""
    return position + (num_rows - 1) // 2


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
    layer_bits: LayerBits = (),
    reading_s: float = 0.0,
) -> StepTime:
    """Seconds of one forward pass of one front, after `position` cached tokens: `front_steps`.

    layer_bits: bits of each layer where they differ (mixed precision).
    """
    step = front_steps(
        device,
        geometry,
        layer_bits=[layer_bits or (weight_bits,) * split],
        weight_bits=weight_bits,
        kv_bits=kv_bits,
        num_rows=num_rows,
        positions=[position],
        exact=exact,
        reading_s=[reading_s],
    )
    return StepTime(
        matrices_s=_only(step.matrices_s),
        attention_s=_only(step.attention_s),
        elementwise_s=_only(step.elementwise_s),
        head_s=_only(step.head_s),
        step_s=_only(step.step_s),
        reading_s=_only(step.reading_s),
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
    layer_bits: LayerBits = (),
    first: int = 0,
    reading_s: float = 0.0,
) -> Floats:
    """Seconds of each chunk of a prompt's tokens [first, num_tokens), in order, [N].

    The last chunk may be shorter.
    """
    parts = []
    for rows, starts in chunk_runs(num_tokens - first, chunk):
        steps = front_steps(
            device,
            geometry,
            layer_bits=[layer_bits or (weight_bits,) * split],
            weight_bits=weight_bits,
            kv_bits=kv_bits,
            num_rows=rows,
            positions=[first + start for start in starts],
            exact=exact,
            reading_s=[reading_s],
        )
        parts.append(np.broadcast_to(steps.total_s, (1, len(starts)))[0])
    return np.concatenate([np.zeros(0), *parts])


def chunk_runs(num_tokens: int, chunk: int) -> list[tuple[int, list[int]]]:
    """A prompt cut into chunks: first all but the last, which are full, then the last. Each entry
    has the rows of its chunks, and where each chunk starts."""
    starts = list(range(0, num_tokens, chunk))
    runs = [(chunk, starts[:-1]), (num_tokens - starts[-1], starts[-1:])] if starts else []
    return [(rows, places) for rows, places in runs if places]


def _layers_by_kernel(layer_bits: Sequence[LayerBits], halves: bool) -> dict[FrontKernel, Floats]:
    """How many layers of each front are computed at each precision: kernel -> [S, 1]."""
    counts = [
        Counter(front_kernel(bits, halves=halves).computed_bits for bits in bits_)
        for bits_ in layer_bits
    ]
    return {
        front_kernel(bits, halves=halves): np.array([[float(count[bits])] for count in counts])
        for bits in sorted({bits for count in counts for bits in count})
    }


def _only(values: Quantity) -> float:
    return float(np.asarray(values).item())
