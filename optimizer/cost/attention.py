"""Seconds of attention in many layers, each of which sees all tokens or a window of them.

Layers of one window take the same time, so they are counted and asked for once. In each layer the
time is a line over the tokens attended to (`hwprofiles.profiles.rates.attention_line`). With a
window of w tokens, r new rows attend to at most w + r - 1 of them. Formulas: ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hwprofiles.profiles.device import AttentionKernel
from hwprofiles.profiles.rates import Floats, Quantity, attention_line
from optimizer.artifacts.geometry import ModelGeometry

LayerCounts = Mapping[int | None, Floats]  # window (None: no window) -> number of layers


class WindowAttention(NamedTuple):
    """Attention of one session's rows in all layers of one window. `most_tokens` is infinite
    without a window."""

    fixed_s: Floats
    s_per_token: Floats
    most_tokens: float


def layers_by_window(
    geometry: ModelGeometry, start: int | npt.NDArray[np.int_], stop: int | npt.NDArray[np.int_]
) -> LayerCounts:
    """How many of the layers [start, stop) have each window; arrays of bounds give arrays."""
    return {
        window: before[np.asarray(stop)] - before[np.asarray(start)]
        for window, before in _layers_before(geometry).items()
    }


def window_attention(
    kernel: AttentionKernel,
    geometry: ModelGeometry,
    layers: LayerCounts,
    *,
    num_rows: int,
    working_set_bytes: Quantity,
) -> tuple[WindowAttention, ...]:
    """Attention of `num_rows` rows of one session in `layers`, window by window."""
    line = attention_line(
        kernel,
        num_rows=num_rows,
        num_heads=geometry.num_heads,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        working_set_bytes=working_set_bytes,
    )
    return tuple(
        WindowAttention(
            count * line.fixed_s,
            count * line.s_per_token,
            math.inf if window is None else window + num_rows - 1,
        )
        for window, count in layers.items()
    )


def attended_s(windows: Sequence[WindowAttention], num_tokens: Quantity) -> Floats:
    """Seconds of attention over `num_tokens` tokens, new ones included, in all layers."""
    total = np.zeros(())
    for fixed_s, s_per_token, most_tokens in windows:
        total = total + fixed_s + s_per_token * np.minimum(num_tokens, most_tokens)
    return total


@lru_cache(maxsize=64)
def _layers_before(geometry: ModelGeometry) -> LayerCounts:
    """Window -> how many layers below each layer have it, [L + 1]."""
    windows = [geometry.window_of_layer(layer) for layer in range(geometry.num_layers)]
    return {
        window: np.concatenate([[0.0], np.cumsum([float(w == window) for w in windows])])
        for window in dict.fromkeys(windows)
    }
