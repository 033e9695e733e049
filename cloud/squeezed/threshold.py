"""The one threshold that all layers and heads of a context share.

Source: arXiv:2411.09688, section 3.2: it is chosen with the last queries of the fixed context, so
that a given share of the keys is kept over all layers and heads together. A layer that looks at few
keys then keeps fewer than one that looks at many.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor

_LOWEST: Final = -32.0  # of a logarithm: what is below counts as this
_BINS_A_UNIT: Final = 128


def choose_threshold(layers: Iterable[tuple[Tensor, Tensor]], ratio: float) -> float:
    """The logarithm of the weight above which a cluster is read: so that the share `ratio` is read.

    layers: of each layer the logarithms of the weights of the recorded queries, [Q, KV, C], and how
    many keys each cluster has, [KV, C]. -inf where all keys are to be read.
    """
    if ratio >= 1:
        return -math.inf
    num_bins = int(-_LOWEST) * _BINS_A_UNIT
    kept = torch.zeros(num_bins, dtype=torch.float64)
    for shares, counts in layers:
        bins = ((shares - _LOWEST) * _BINS_A_UNIT).long().clamp_(0, num_bins - 1)
        weights = counts.double().expand(shares.shape)
        kept += torch.bincount(bins.flatten(), weights.flatten(), minlength=num_bins)
    from_here_up = kept.flip(0).cumsum(0).flip(0)
    enough = from_here_up >= ratio * from_here_up[0]
    last = int(enough.sum()) - 1  # the highest bin from which on enough is kept
    return -math.inf if last <= 0 else _LOWEST + last / _BINS_A_UNIT
