"""Clusters of keys: k-means of each segment, and the share of a query's attention of each cluster.

The method is Squeezed Attention (arXiv:2411.09688): k-means on L2-normalised keys; a cluster's
centroid is the mean of its keys as they are. A cluster's score is the softmax weight that one of
its keys would have if every key were its centroid. Keys of clusters above a threshold are read.

Ours:
- A context is clustered in segments of a fixed length. A segment's clusters are then a function of
  its keys alone, so that contexts that begin alike share them, and the work grows with the context
  and not with its square.
- The query heads that share keys share a selection, the union of theirs, because keys are read for
  all of them together.
- A cluster that is not read still counts: as so many keys at its centroid, with its mean value. The
  paper leaves it out.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

# As in kernel.c. The kernel finds a cluster's number in a byte.
SEGMENT_TOKENS: Final = 512
NUM_CLUSTERS: Final = 32
_ITERATIONS: Final = 8


class Clusters(NamedTuple):
    """Clusters of N independent sets of keys, C = NUM_CLUSTERS each.

    labels: uint8 [N, S], each key's cluster. centroids: float32 [N, d, C]. counts: float32 [N, C],
    keys of each; where it is 0, the centroid is another cluster's. values: float32 [N, C, d], the
    mean value of its keys.
    """

    labels: Tensor
    centroids: Tensor
    counts: Tensor
    values: Tensor


def cluster_keys(keys: Tensor, values: Tensor) -> Clusters:
    """Cluster N sets of S keys, float32 [N, S, d]. The same keys always give the same clusters.

    Lloyd's iterations on normalised keys. They begin with the keys at even distances.
    """
    num_sets, num_keys, dim = keys.shape
    normal = torch.nn.functional.normalize(keys, dim=2)
    first = torch.arange(NUM_CLUSTERS) * num_keys // NUM_CLUSTERS
    means = normal[:, first]  # [N, C, d]
    for _ in range(_ITERATIONS):
        members = _members(_nearest(normal, means))
        counts = members.sum(dim=1)  # [N, C]
        sums = torch.bmm(members.transpose(1, 2), normal)
        means = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], means)
    labels = _nearest(normal, means)
    members = _members(labels)
    counts = members.sum(dim=1)
    sizes = counts.clamp(min=1)[..., None]
    centroids = torch.bmm(members.transpose(1, 2), keys) / sizes
    mean_values = torch.bmm(members.transpose(1, 2), values) / sizes
    of_first = centroids.gather(1, labels[:, :1, None].expand(num_sets, 1, dim))
    centroids = torch.where(counts[..., None] > 0, centroids, of_first)
    centroids = centroids.transpose(1, 2).contiguous()
    return Clusters(labels.to(torch.uint8), centroids, counts, mean_values)


def cluster_scores(query: Tensor, centroids: Tensor, scale: float) -> Tensor:
    """float32 [Q, KV, G, C] of queries [Q, H, d] and centroids [KV, d, C]."""
    num_queries, num_heads, dim = query.shape
    num_kv_heads = centroids.shape[0]
    grouped = query.view(num_queries, num_kv_heads, num_heads // num_kv_heads, dim)
    return torch.matmul(grouped, centroids).mul_(scale)


def log_shares(scores: Tensor, counts: Tensor) -> Tensor:
    """The logarithm of the softmax weight of a key of each cluster: float32 [Q, KV, C].

    scores: `cluster_scores`; counts: [KV, C]. Of the heads that share keys the largest weight
    counts. Source: arXiv:2411.09688, section 3, with the union ours.
    """
    total = torch.logsumexp(scores + counts.log()[:, None], dim=3, keepdim=True)
    return (scores - total).amax(dim=2)


def _nearest(normal: Tensor, means: Tensor) -> Tensor:
    """int64 [N, S]: the nearest mean of each normalised key."""
    closeness = torch.bmm(normal, means.transpose(1, 2))
    closeness -= means.square().sum(dim=2).mul_(0.5)[:, None]
    return closeness.argmax(dim=2)


def _members(labels: Tensor) -> Tensor:
    """float32 [N, S, C]: 1 where a key belongs to a cluster."""
    return torch.nn.functional.one_hot(labels, NUM_CLUSTERS).float()
