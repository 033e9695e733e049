"""The index of a fixed context: the clusters of its segments in all layers, and a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cloud.squeezed.clusters import NUM_CLUSTERS, SEGMENT_TOKENS, cluster_keys, log_shares
from cloud.squeezed.threshold import choose_threshold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class SegmentIndex:
    """A segment's clusters in N layers, and the threshold of a context that ends with it.

    labels: uint8 [N, KV, SEGMENT_TOKENS]; centroids: float32 [N, KV, d, C]; counts: float32
    [N, KV, C] (`Clusters`). threshold: logarithm of a softmax weight.
    """

    labels: Tensor
    centroids: Tensor
    counts: Tensor
    threshold: float

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(part.nbytes for part in (self.labels, self.centroids, self.counts))


class SegmentRows(NamedTuple):
    """What a segment's index is made of. keys: float32 [N, KV, SEGMENT_TOKENS, d], its own copy.
    queries: float32 [N, Q, H, d], of the segment's last Q rows."""

    keys: Tensor
    queries: Tensor


@torch.inference_mode()
def index_segment(
    rows: SegmentRows, before: Sequence[SegmentIndex], scales: Sequence[float], ratio: float
) -> SegmentIndex:
    """The index of a segment behind those of `before`. scales: of the scores, one a layer."""
    num_layers, num_kv_heads, num_keys, dim = rows.keys.shape
    made = cluster_keys(rows.keys.reshape(-1, num_keys, dim))
    labels = made.labels.view(num_layers, num_kv_heads, num_keys)
    centroids = made.centroids.view(num_layers, num_kv_heads, dim, NUM_CLUSTERS)
    counts = made.counts.view(num_layers, num_kv_heads, NUM_CLUSTERS)
    all_counts = torch.cat([*(one.counts for one in before), counts], dim=2)
    threshold = choose_threshold(
        (
            (
                log_shares(
                    rows.queries[layer],
                    torch.cat([*(one.centroids[layer] for one in before), centroids[layer]], dim=2),
                    all_counts[layer],
                    scale,
                ),
                all_counts[layer],
            )
            for layer, scale in enumerate(scales)
        ),
        ratio,
    )
    return SegmentIndex(labels=labels, centroids=centroids, counts=counts, threshold=threshold)


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedIndex:
    """The finished index of a session's fixed context: `segments`, at least one.

    places: the index of each layer in the segments' tensors. scales: of each layer's scores.
    native: what the compiled kernel reads, made when it first does.
    """

    segments: tuple[SegmentIndex, ...]
    places: Mapping[int, int]
    scales: Mapping[int, float]
    native: dict[str, object] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Positions that it covers, from 0 on."""
        return len(self.segments) * SEGMENT_TOKENS

    @property
    def threshold(self) -> float:
        """Clusters with a larger logarithm are read."""
        return self.segments[-1].threshold

    def selected(self, layer: int, query: Tensor) -> Tensor:
        """Which keys a row reads: bool [KV, num_tokens]. query: [H, d]."""
        labels, centroids, counts = self._joined
        place = self.places[layer]
        shares = log_shares(query[None], centroids[place], counts[place], self.scales[layer])[0]
        return (shares > self.threshold).gather(1, labels[place])

    @cached_property
    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """The segments' tensors, one behind the other; labels count on, int64."""
        labels = [
            one.labels.long() + number * NUM_CLUSTERS for number, one in enumerate(self.segments)
        ]
        centroids = torch.cat([one.centroids for one in self.segments], dim=3)
        counts = torch.cat([one.counts for one in self.segments], dim=2)
        return torch.cat(labels, dim=2), centroids, counts
