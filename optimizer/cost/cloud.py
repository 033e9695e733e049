"""Seconds of the back on the server: one step of a packed batch, and the batch a load settles at.

Ours, a roofline on the device profile: a packed batch of sessions walks the back's weights once,
    step = step_s + layers * (layer_s + sum over matrices of max(bytes / rate, flops / rate)) + head
plus each session's attention over its own cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hwprofiles.device import DeviceProfile
from hwprofiles.rates import attention_s, matrix_s
from optimizer.cost.weights import Matrix, back_matrix_bytes, layer_matrices
from optimizer.geometry import ModelGeometry


class SessionRows(NamedTuple):
    """What one session brings to a batch: new rows, and tokens cached before them."""

    num_rows: int
    position: int


def back_step_s(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    num_layers: int,
    back_bits: int,
    kv_bits: int,
    sessions: Sequence[SessionRows],
) -> float:
    """Seconds of one batch through the last `num_layers` layers and the head.

    The head runs for one row a session; it keeps at least 16 bits. Raises ProfileError when the
    device has no kernel for these precisions.
    """
    if not sessions:
        return 0.0
    rows = sum(session.num_rows for session in sessions)
    kernel = device.kernel(back_bits)
    head_bits = max(back_bits, 16)
    matrices = layer_matrices(geometry)
    working_set = num_layers * sum(back_matrix_bytes(matrix, back_bits) for matrix in matrices)

    def seconds_of(matrix: Matrix, bits: int, num_rows: int) -> float:
        return matrix_s(
            kernel,
            num_weights=matrix.num_weights,
            matrix_bytes=back_matrix_bytes(matrix, bits),
            num_rows=num_rows,
            working_set_bytes=working_set,
        )

    layer = device.overheads.layer_s.effective
    layer += sum(seconds_of(matrix, back_bits, rows) for matrix in matrices)
    cache = device.attention_kernel(kv_bits)
    for session in sessions:
        layer += attention_s(
            cache,
            num_rows=session.num_rows,
            num_tokens=session.position + session.num_rows,
            num_heads=geometry.num_heads,
            head_dim=geometry.head_dim,
            working_set_bytes=working_set,
        )
    head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
    total = device.overheads.step_s.effective + num_layers * layer
    return total + seconds_of(head, head_bits, len(sessions))


def steady_batch(
    num_sessions: int, think_s: float, step_s: Callable[[float], float], *, tolerance: float = 1e-6
) -> float:
    """The batch size that `num_sessions` closed-loop sessions settle at, between 1 and all.

    Each session is away for `think_s` (edge, wire) and then waits half a step on average for the
    running batch to end and a whole step for its own, so the number inside is
        b = N * 1.5 t(b) / (think_s + 1.5 t(b)),
    a fixed point, unique because t grows no faster than its argument; found by bisection.
    `step_s` must not fall as the batch grows.
    """

    def inside(batch: float) -> float:
        held = 1.5 * step_s(batch)
        return num_sessions * held / (think_s + held)

    low, high = 1.0, float(max(num_sessions, 1))
    if inside(low) <= low:
        return low
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) > middle else (low, middle)
    return (low + high) / 2
