"""Seconds of the back, one value at a time: what `optimizer.cost.cloud` must equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.cloud import SessionRows, back_compute_bits
from optimizer.cost.weights import (
    Matrix,
    back_layer_matrices,
    back_matrix_bytes,
)
from tests.optimizer.reference.rates import attention_s, layer_rest_s, matrix_s


def back_step_s(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    num_layers: int,
    back_bits: int,
    kv_bits: int,
    sessions: Sequence[SessionRows],
    num_logits: int | None = None,
    skipped_layers: Sequence[int] = (),
) -> float:
    """Seconds of one batch through the last `num_layers` layers, each session from its split on,
    and the head.

    `skipped_layers`: of each session, how many of these layers lie below its split (ragged entry;
    empty: none). The head runs for `num_logits` rows, one a session unless given, and is stored
    like the other matrices. Raises ProfileError when the device has no kernel for these precisions.
    """
    if not sessions:
        return 0.0
    logits = len(sessions) if num_logits is None else num_logits
    bits = back_compute_bits(device, back_bits)
    kernel = device.kernel(bits)
    matrices = back_layer_matrices(geometry)
    head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
    working_set = num_layers * sum(back_matrix_bytes(matrix, bits) for matrix in matrices)
    working_set += back_matrix_bytes(head, bits)

    def seconds_of(matrix: Matrix, num_rows: int) -> float:
        return matrix_s(
            kernel,
            num_weights=matrix.num_weights,
            matrix_bytes=back_matrix_bytes(matrix, bits),
            num_rows=num_rows,
            working_set_bytes=working_set,
        )

    overheads = device.overheads
    total = overheads.step_s.effective
    skipped = skipped_layers or (0,) * len(sessions)
    starts = sorted({min(skip, num_layers) for skip in skipped})
    for start, stop in zip(starts, [*starts[1:], num_layers], strict=True):
        active = [s.num_rows for s, skip in zip(sessions, skipped, strict=True) if skip <= start]
        rest = layer_rest_s(
            kernel,
            overheads,
            width=geometry.hidden_size,
            inner=geometry.intermediate_size,
            num_rows=sum(active),
            num_sessions=len(active),
            working_set_bytes=working_set,
        )
        work = sum(seconds_of(matrix, sum(active)) for matrix in matrices)
        total += (stop - start) * (rest + work)
    cache = device.attention_kernel(kv_bits)

    def attention_of(session: SessionRows, window: int | None) -> float:
        tokens = session.position + session.num_rows
        return attention_s(
            cache,
            num_rows=session.num_rows,
            num_tokens=tokens if window is None else min(tokens, window + session.num_rows - 1),
            num_heads=geometry.num_heads,
            num_kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            working_set_bytes=working_set,
        )

    first = geometry.num_layers - num_layers
    for (session, skip), count in Counter(zip(sessions, skipped, strict=True)).items():
        entered = range(first + skip, geometry.num_layers)
        for window, layers in Counter(map(geometry.window_of_layer, entered)).items():
            total += layers * count * attention_of(session, window)
    if overheads.session_s is not None:
        total += len(sessions) * overheads.session_s.effective
    return total + (seconds_of(head, logits) if logits else 0.0)


def sample_s(device: DeviceProfile, geometry: ModelGeometry, *, num_logits: int) -> float:
    """Seconds of drawing `num_logits` tokens from logits over the vocabulary, where measured."""
    figure = device.overheads.sample_s_per_logit
    return 0.0 if figure is None else num_logits * geometry.vocab_size * figure.effective
