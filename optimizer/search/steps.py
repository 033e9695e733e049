"""Seconds of front and back for every split and position at once.

`optimizer.cost.edge.front_step` and `optimizer.cost.cloud.back_step_s` are the definition; a test
holds these to them. A split is the number of layers on the edge; results are [S, P], S splits by
P positions (tokens cached before the step).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import layer_rest_s
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.cloud import back_compute_bits, back_kv_bits
from optimizer.cost.edge import front_kernel
from optimizer.cost.weights import (
    Matrix,
    back_layer_matrices,
    back_matrix_bytes,
    front_layer_bytes,
    front_matrix_bytes,
    layer_matrices,
)
from optimizer.search.rates import Floats, attention_s_at, matrix_s_at

LayerBits = tuple[int, ...]


def front_steps_s(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    layer_bits: Sequence[LayerBits],
    embedding_bits: int,
    kv_bits: int,
    num_rows: int,
    positions: Sequence[int],
    exact: bool = False,
) -> Floats:
    """Seconds of one forward pass of `num_rows` tokens, [S, P].

    `layer_bits` has one entry a split: the bits of each of its layers. `embedding_bits` are the
    bits of the embedding and of the head. Raises ProfileError for precisions without a kernel.
    """
    splits = np.array([len(bits) for bits in layer_bits])
    tokens = np.asarray(positions, dtype=np.float64) + num_rows  # [P]
    counts = _layer_counts(layer_bits)  # bits -> [S]
    kernels = {bits: front_kernel(device, bits, exact=exact) for bits in counts}
    head_bits = _computed_bits(embedding_bits)
    kernel = kernels.get(head_bits) or front_kernel(device, head_bits, exact=exact)
    kv_bytes = geometry.kv_bytes(num_layers=1, num_tokens=1, kv_bits=kv_bits)
    working_set = splits[:, None] * tokens[None, :] * kv_bytes  # [S, P]
    for bits, count in counts.items():
        working_set = working_set + (count * front_layer_bytes(geometry, bits))[:, None]
    total = np.zeros(working_set.shape)
    for bits, count in counts.items():
        for matrix in layer_matrices(geometry):
            total += count[:, None] * matrix_s_at(
                kernels[bits],
                num_weights=matrix.num_weights,
                matrix_bytes=front_matrix_bytes(matrix.num_weights, bits),
                num_rows=num_rows,
                working_set_bytes=working_set,
            )
    cache = device.attention_kernel(kv_bits)
    for window, layers in _window_counts(geometry, splits, front=True).items():
        total += layers[:, None] * attention_s_at(
            cache,
            num_rows=num_rows,
            num_tokens=tokens if window is None else np.minimum(tokens, window + num_rows - 1),
            num_heads=geometry.num_heads,
            head_dim=geometry.head_dim,
            working_set_bytes=working_set,
        )
    for bits, count in counts.items():
        total += count[:, None] * layer_rest_s(
            kernels[bits],
            device.overheads,
            width=geometry.hidden_size,
            inner=geometry.intermediate_size,
            num_rows=num_rows,
        )
    total += device.overheads.step_s.effective
    total += num_rows * geometry.hidden_size * kernel.lookup_s_per_element
    head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
    head_s = matrix_s_at(
        kernel,
        num_weights=head.num_weights,
        matrix_bytes=front_matrix_bytes(head.num_weights, head_bits),
        num_rows=1,
        working_set_bytes=working_set,
    )
    return total + np.where((splits == geometry.num_layers)[:, None], head_s, 0.0)


def back_steps_s(
    device: DeviceProfile,
    geometry: ModelGeometry,
    *,
    splits: Sequence[int],
    back_bits: int,
    num_rows: int,
    positions: Sequence[int],
    num_logits: int,
    others: int = 0,
    other_rows: int = 1,
) -> Floats:
    """Seconds of one batch of the back, [S, P]: ours of `num_rows` rows of which `num_logits` go
    through the head, and `others` sessions of `other_rows` rows, all with logits, at the same
    position."""
    split_of = np.asarray(splits)
    layers = geometry.num_layers - split_of  # [S]
    place = np.asarray(positions, dtype=np.float64)  # [P]
    bits = back_compute_bits(device, back_bits)
    kernel = device.kernel(bits)
    matrices = back_layer_matrices(geometry)
    head = Matrix("head", geometry.hidden_size, geometry.vocab_size)
    working_set = layers * sum(back_matrix_bytes(matrix, bits) for matrix in matrices)
    working_set = (working_set + back_matrix_bytes(head, bits))[:, None]  # [S, 1]
    rows = num_rows + others * other_rows

    def seconds_of(matrix: Matrix, count: int) -> Floats:
        return matrix_s_at(
            kernel,
            num_weights=matrix.num_weights,
            matrix_bytes=back_matrix_bytes(matrix, bits),
            num_rows=count,
            working_set_bytes=working_set,
        )

    overheads = device.overheads
    rest_s = layer_rest_s(
        kernel,
        overheads,
        width=geometry.hidden_size,
        inner=geometry.intermediate_size,
        num_rows=rows,
        num_sessions=1 + others,
    )
    per_layer = rest_s + sum(seconds_of(matrix, rows) for matrix in matrices)  # [S, 1]
    total = overheads.step_s.effective + layers[:, None] * per_layer
    total = np.broadcast_to(total, (len(split_of), len(place))).copy()
    cache = device.attention_kernel(back_kv_bits(device))
    sessions = Counter({num_rows: 1})
    sessions[other_rows] += others
    for window, count in _window_counts(geometry, split_of, front=False).items():
        for session_rows, number in sessions.items():
            tokens = place + session_rows
            seen = tokens if window is None else np.minimum(tokens, window + session_rows - 1)
            total += (count[:, None] * number) * attention_s_at(
                cache,
                num_rows=session_rows,
                num_tokens=seen,
                num_heads=geometry.num_heads,
                head_dim=geometry.head_dim,
                working_set_bytes=np.broadcast_to(working_set, total.shape),
            )
    if overheads.session_s is not None:
        total += (1 + others) * overheads.session_s.effective
    logits = num_logits + others * other_rows
    return total + (seconds_of(head, logits) if logits else 0.0)


def _layer_counts(layer_bits: Sequence[LayerBits]) -> dict[int, Floats]:
    """How many layers of each compute precision every split has: bits -> [S]."""
    counts = [Counter(_computed_bits(bits) for bits in layers) for layers in layer_bits]
    found = sorted({bits for count in counts for bits in count})
    return {bits: np.array([float(count[bits]) for count in counts]) for bits in found}


def _window_counts(
    geometry: ModelGeometry, splits: Floats, *, front: bool
) -> dict[int | None, Floats]:
    """How many layers of each attention window lie on this side of every split."""
    windows = [geometry.window_of_layer(layer) for layer in range(geometry.num_layers)]
    found: dict[int | None, Floats] = {}
    for window in dict.fromkeys(windows):
        before = np.concatenate([[0.0], np.cumsum([float(w == window) for w in windows])])
        inside = before[splits]
        found[window] = inside if front else before[-1] - inside
    return found


def _computed_bits(bits: int) -> int:
    """16-bit weights are widened to 32 at load."""
    return 32 if bits > 8 else bits
