"""The index of a fixed context: the clusters of its segments in all layers, and a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cloud.squeezed.clusters import (
    NUM_CLUSTERS,
    SEGMENT_TOKENS,
    cluster_keys,
    cluster_scores,
    log_shares,
)
from cloud.squeezed.threshold import choose_threshold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class SegmentIndex:
    """A segment's clusters in N layers, and the threshold of a context that ends with it.

    labels: uint8 [N, KV, SEGMENT_TOKENS]; centroids: float32 [N, KV, d, C]; counts: float32
    [N, KV, C]; values: float32 [N, KV, C, d] (`Clusters`). threshold: logarithm of a softmax
    weight.
    """

    labels: Tensor
    centroids: Tensor
    counts: Tensor
    values: Tensor
    threshold: float

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        parts = (self.labels, self.centroids, self.counts, self.values)
        return sum(part.nbytes for part in parts)


class SegmentRows(NamedTuple):
    """What a segment's index is made of. keys, values: float32 [N, KV, SEGMENT_TOKENS, d], copies.
    queries: float32 [N, Q, H, d], of the segment's last Q rows."""

    keys: Tensor
    values: Tensor
    queries: Tensor


@torch.inference_mode()
def index_segment(
    rows: SegmentRows, before: Sequence[SegmentIndex], scales: Sequence[float], ratio: float
) -> SegmentIndex:
    """The index of a segment behind those of `before`. scales: of the scores, one a layer."""
    num_layers, num_kv_heads, num_keys, dim = rows.keys.shape
    made = cluster_keys(
        rows.keys.reshape(-1, num_keys, dim), rows.values.reshape(-1, num_keys, dim)
    )
    labels = made.labels.view(num_layers, num_kv_heads, num_keys)
    centroids = made.centroids.view(num_layers, num_kv_heads, dim, NUM_CLUSTERS)
    counts = made.counts.view(num_layers, num_kv_heads, NUM_CLUSTERS)
    all_counts = torch.cat([*(one.counts for one in before), counts], dim=2)
    threshold = choose_threshold(
        (
            (
                log_shares(
                    cluster_scores(
                        rows.queries[layer],
                        torch.cat(
                            [*(one.centroids[layer] for one in before), centroids[layer]], dim=2
                        ),
                        scale,
                    ),
                    all_counts[layer],
                ),
                all_counts[layer],
            )
            for layer, scale in enumerate(scales)
        ),
        ratio,
    )
    return SegmentIndex(
        labels=labels,
        centroids=centroids,
        counts=counts,
        values=made.values.view(num_layers, num_kv_heads, NUM_CLUSTERS, dim),
        threshold=threshold,
    )


class Selection(NamedTuple):
    """What one row reads of a fixed context.

    keys: bool [KV, S], those that are read. scores: float32 [KV, G, C], of each other cluster the
    score of its centroid and the logarithm of its number of keys; -inf for one that is read.
    values: float32 [KV, C, d], their mean values.
    """

    keys: Tensor
    scores: Tensor
    values: Tensor


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

    def select(self, layer: int, query: Tensor) -> Selection:
        """What a row reads. query: [H, d]."""
        labels, centroids, counts, values = self._joined
        place = self.places[layer]
        scores = cluster_scores(query[None], centroids[place], self.scales[layer])
        reads = (log_shares(scores, counts[place]) > self.threshold)[0]
        unread = counts[place].masked_fill(reads, 0).log()[:, None]
        return Selection(reads.gather(1, labels[place]), scores[0] + unread, values[place])

    @cached_property
    def _joined(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The segments' tensors, one behind the other; labels count on, int64."""
        labels = [
            one.labels.long() + number * NUM_CLUSTERS for number, one in enumerate(self.segments)
        ]
        centroids = torch.cat([one.centroids for one in self.segments], dim=3)
        counts = torch.cat([one.counts for one in self.segments], dim=2)
        values = torch.cat([one.values for one in self.segments], dim=2)
        return torch.cat(labels, dim=2), centroids, counts, values
