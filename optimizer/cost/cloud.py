"""Seconds of the back on the server: one step of a packed batch.

Ours; each part is what the profiler measured in the server's own engine:

    step = step_s + sessions * session_s
         + sum over layers of (sum over matrices of (dispatch_s + seconds(rows))
             + rest(rows, sessions): what whole layers take beyond these
             + sum over sessions of attention(rows, tokens))
         + head(logits)

A packed batch of sessions reads the back's weights once, each session its own cache. `BackCost` has
the parts, for one number of layers or for many; `back_step_s` adds them up for one batch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.device import Compute, DeviceProfile
from hwprofiles.profiles.rates import Floats, Quantity, layer_rest_s, matrix_s
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.attention import (
    WindowAttention,
    attended_s,
    layers_by_window,
    window_attention,
)
from optimizer.cost.weights import Matrix, back_layer_matrices, back_matrix_bytes, head_matrix


class SessionRows(NamedTuple):
    """What one session brings to a batch: new rows, and tokens cached before them."""

    num_rows: int
    position: int


class SessionGroup(NamedTuple):
    """Sessions that bring the same to a batch: rows each, and tokens cached before them (an array
    of positions asks for as many batches). `skipped`: the layers below their split."""

    num_rows: int
    position: Quantity
    num_sessions: int = 1
    skipped: int = 0


# What a weight takes where a device has no 8-bit arithmetic, by the type it computes in.
_WIDENED_BITS: Final[Mapping[Compute, int]] = {"int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}


def back_kv_bits(device: DeviceProfile, back_bits: int) -> int:
    """Bits of the server's KV cache: those of the type it computes in (`back_weights.py`)."""
    on_cpu = device.platform.engine.endswith("cpu")
    return 32 if on_cpu or back_bits == 32 else 16


def back_compute_bits(device: DeviceProfile, back_bits: int) -> int:
    """Bits of a weight stored at `back_bits` in the server's memory, which its kernels read.

    A CPU widens 16 to 32 at load (halves are slow there). Where a device does not multiply int8, 8
    are widened to what its kernel for them computes in: to 16 on a GPU, to 32 on a CPU that has no
    exact int8 product.
    """
    if back_bits == 16 and device.platform.engine.endswith("cpu"):
        return 32
    if back_bits == 8:
        types = [kernel.compute for kernel in device.kernels if kernel.weight_bits == 8]
        return min((_WIDENED_BITS[compute] for compute in types), default=8)
    return back_bits


class BackCost:
    """Seconds of a back's step, part by part.

    `num_layers`: the last layers, which the back has; an array [S, 1] stands for S backs, and
    every result is then an array of [S, 1] or, over P positions, [S, P]. Seconds of matrices are
    kept by their rows, because batches differ in all but those. Raises ProfileError when the device
    has no kernel for these precisions.
    """

    def __init__(
        self,
        device: DeviceProfile,
        geometry: ModelGeometry,
        *,
        num_layers: int | npt.NDArray[np.int_],
        back_bits: int,
        kv_bits: int,
    ) -> None:
        self._overheads = device.overheads
        self._geometry = geometry
        self._num_layers = num_layers
        self._bits = back_compute_bits(device, back_bits)
        self._kernel = device.kernel(self._bits)
        self._cache = device.attention_kernel(kv_bits)
        self._matrices = back_layer_matrices(geometry)
        layer_bytes = sum(back_matrix_bytes(matrix, self._bits) for matrix in self._matrices)
        # What one step reads decides which level of the caches it runs from.
        head_bytes = back_matrix_bytes(head_matrix(geometry), self._bits)
        self._layer_matrices_s: dict[int, Floats] = {}
        self._head_s: dict[int, Floats] = {}
        self._working_set_bytes: Quantity = np.asarray(num_layers * layer_bytes + head_bytes)

    def layer_s(self, num_rows: int, num_sessions: int) -> Floats:
        """One layer without its attention, for so many rows of so many sessions."""
        rest_s = layer_rest_s(
            self._kernel,
            self._overheads,
            width=self._geometry.hidden_size,
            inner=self._geometry.intermediate_size,
            num_rows=num_rows,
            num_sessions=num_sessions,
            working_set_bytes=self._working_set_bytes,
        )
        return rest_s + self.layer_matrices_s(num_rows)

    def layer_matrices_s(self, num_rows: int) -> Floats:
        """The matrices of one layer."""
        if num_rows not in self._layer_matrices_s:
            seconds = [self._matrix_s(matrix, num_rows) for matrix in self._matrices]
            self._layer_matrices_s[num_rows] = np.asarray(sum(seconds))
        return self._layer_matrices_s[num_rows]

    def head_s(self, num_logits: int) -> Floats:
        """The head for `num_logits` rows."""
        if not num_logits:
            return np.zeros(())
        if num_logits not in self._head_s:
            self._head_s[num_logits] = self._matrix_s(head_matrix(self._geometry), num_logits)
        return self._head_s[num_logits]

    def batch_s(self, num_rows: int, num_sessions: int, num_logits: int) -> Floats:
        """A step of so many rows in all, without attention."""
        session_s = self._overheads.session_s
        fixed_s = self._overheads.step_s.effective
        fixed_s += 0.0 if session_s is None else num_sessions * session_s.effective
        layers_s = self._num_layers * self.layer_s(num_rows, num_sessions)
        return fixed_s + layers_s + self.head_s(num_logits)

    def attention(self, num_rows: int, *, skipped: int = 0) -> tuple[WindowAttention, ...]:
        """Attention of one session's rows in all its layers, window by window."""
        last = self._geometry.num_layers
        return window_attention(
            self._cache,
            self._geometry,
            layers_by_window(self._geometry, last - self._num_layers + skipped, last),
            num_rows=num_rows,
            working_set_bytes=self._working_set_bytes,
        )

    def step_s(self, groups: Iterable[SessionGroup], num_logits: int) -> Floats:
        """One step of a batch, `num_logits` rows of which go through the head."""
        groups = list(groups)
        total = self.step_without_attention_s(groups, num_logits)
        for group in groups:
            windows = self.attention(group.num_rows, skipped=group.skipped)
            attention_s = attended_s(windows, group.position + group.num_rows)
            total = total + group.num_sessions * attention_s
        return total

    def step_without_attention_s(self, groups: Sequence[SessionGroup], num_logits: int) -> Floats:
        """The same without attention, whatever the positions are."""
        num_rows = sum(group.num_sessions * group.num_rows for group in groups)
        num_sessions = sum(group.num_sessions for group in groups)
        total = self.batch_s(num_rows, num_sessions, num_logits)
        return total - self._not_entered_s(groups, num_rows, num_sessions)

    def shared_step_s(
        self,
        *,
        num_rows: int,
        position: Quantity,
        num_logits: int,
        batch: int,
        others_skip: int = 0,
    ) -> Floats:
        """One step for our rows beside those of the `batch` - 1 other sessions. When all our rows
        make logits, the others decode as we do; otherwise each of them brings one row. The others
        enter `others_skip` layers above ours."""
        other_rows = num_rows if num_logits == num_rows else 1
        groups = [SessionGroup(num_rows, position)]
        if batch > 1:
            groups.append(SessionGroup(other_rows, position, batch - 1, others_skip))
        return self.step_s(groups, num_logits + (batch - 1) * other_rows)

    def _not_entered_s(
        self, groups: Sequence[SessionGroup], num_rows: int, num_sessions: int
    ) -> Floats:
        """What the lower layers save because some sessions enter above them."""
        saved = np.zeros(())
        starts = sorted({0, *(group.skipped for group in groups)})
        for start, stop in itertools.pairwise(starts):
            active = [group for group in groups if group.skipped <= start]
            rows = sum(group.num_sessions * group.num_rows for group in active)
            inside = sum(group.num_sessions for group in active)
            inside_s = self.layer_s(rows, inside) if active else 0.0
            saved = saved + (stop - start) * (self.layer_s(num_rows, num_sessions) - inside_s)
        return saved

    def _matrix_s(self, matrix: Matrix, num_rows: int) -> Floats:
        return matrix_s(
            self._kernel,
            num_weights=matrix.num_weights,
            matrix_bytes=back_matrix_bytes(matrix, self._bits),
            num_rows=num_rows,
            working_set_bytes=self._working_set_bytes,
        )


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

    skipped_layers: of each session, how many of these layers lie below its split (ragged entry;
    empty: none). The head runs for `num_logits` rows, one a session unless given, and is stored
    like the other matrices. Raises ProfileError when the device has no kernel for these precisions.
    """
    if not sessions:
        return 0.0
    back = BackCost(device, geometry, num_layers=num_layers, back_bits=back_bits, kv_bits=kv_bits)
    skipped = [min(skip, num_layers) for skip in skipped_layers] or [0] * len(sessions)
    groups = [
        SessionGroup(rows.num_rows, rows.position, count, skip)
        for (rows, skip), count in Counter(zip(sessions, skipped, strict=True)).items()
    ]
    return float(back.step_s(groups, len(sessions) if num_logits is None else num_logits))


def lone_step_s(device: DeviceProfile, step_s: Quantity, batch: int) -> Quantity:
    """Seconds of a decoding step of `batch` sessions, of which `BackCost` says that it takes
    `step_s`.

    The steps of a session alone come after pauses, in which the server waits for it. With others
    there the server goes on from one step to the next.
    """
    return step_s * device.pause_slowdown + device.pause_s if batch == 1 else step_s


def sample_s(device: DeviceProfile, geometry: ModelGeometry, *, num_logits: int) -> float:
    """Seconds of drawing `num_logits` tokens from logits over the vocabulary, where measured."""
    figure = device.overheads.sample_s_per_logit
    return 0.0 if figure is None else num_logits * geometry.vocab_size * figure.effective
