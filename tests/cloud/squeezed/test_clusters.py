"""Clusters, weights and the threshold beside the paper's formulas, written out key by key."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cloud.squeezed.clusters import (
    NUM_CLUSTERS,
    SEGMENT_TOKENS,
    cluster_keys,
    cluster_scores,
    log_shares,
)
from cloud.squeezed.index import FixedIndex, SegmentIndex, SegmentRows, index_segment
from cloud.squeezed.threshold import choose_threshold

DIM, HEADS, KV_HEADS = 16, 6, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_key_is_in_the_cluster_whose_normalised_mean_is_nearest() -> None:
    """At a fixed point of k-means. So few keys reach one."""
    keys = random(1, 64, DIM) * torch.rand(64, 1)  # lengths must not matter
    labels, _, counts, _ = cluster_keys(keys, keys)
    normal = keys[0] / keys[0].norm(dim=1, keepdim=True)
    assert counts.sum() == 64
    means = {
        label: normal[labels[0] == label].mean(dim=0)
        for label in range(NUM_CLUSTERS)
        if (labels[0] == label).any()
    }
    for key, label in zip(normal, labels[0].tolist(), strict=True):
        nearest = min(means, key=lambda one: float((key - means[one]).norm()))
        assert nearest == label


def test_a_centroid_is_the_mean_of_its_keys_as_they_are() -> None:
    keys = random(2, SEGMENT_TOKENS, DIM)
    keys[:, : SEGMENT_TOKENS // 2] = keys[:, :1]  # most beginnings are alike: clusters stay empty
    values = random(2, SEGMENT_TOKENS, DIM, seed=5)
    labels, centroids, counts, mean_values = cluster_keys(keys, values)
    assert (counts == 0).any()
    for which in range(2):
        for cluster in range(NUM_CLUSTERS):
            members = keys[which][labels[which] == cluster]
            assert len(members) == counts[which, cluster]
            if len(members):
                torch.testing.assert_close(centroids[which, :, cluster], members.mean(dim=0))
                its_values = values[which][labels[which] == cluster]
                torch.testing.assert_close(mean_values[which, cluster], its_values.mean(dim=0))
    assert torch.isfinite(centroids).all()


def test_the_same_keys_give_the_same_clusters_in_any_company() -> None:
    keys = random(5, SEGMENT_TOKENS, DIM)
    together, alone = cluster_keys(keys, keys), cluster_keys(*2 * (keys[3:4].clone(),))
    assert all(torch.equal(one[3:4], other) for one, other in zip(together, alone, strict=True))


def test_the_weight_of_a_cluster_is_the_papers_and_the_largest_of_its_heads() -> None:
    query, centroids = random(3, HEADS, DIM), random(KV_HEADS, DIM, 7, seed=1)
    counts = torch.randint(0, 4, (KV_HEADS, 7), generator=torch.Generator().manual_seed(2)).float()
    counts[0, 2] = 0
    got = log_shares(cluster_scores(query, centroids, 0.25), counts).exp()
    for row in range(3):
        for kv_head in range(KV_HEADS):
            for cluster in range(7):
                shares = []
                for head in range(3 * kv_head, 3 * kv_head + 3):
                    weights = [
                        math.exp(0.25 * float(query[row, head] @ centroids[kv_head, :, other]))
                        for other in range(7)
                    ]
                    total = sum(float(n) * w for n, w in zip(counts[kv_head], weights, strict=True))
                    shares.append(weights[cluster] / total)
                assert math.isclose(float(got[row, kv_head, cluster]), max(shares), rel_tol=1e-4)


def test_one_threshold_keeps_the_share_over_all_layers_together() -> None:
    counts = torch.full((KV_HEADS, 50), 10.0)
    layers = [(-5 + spread * random(40, KV_HEADS, 50, seed=spread), counts) for spread in (1, 3)]
    for ratio in (0.1, 0.5, 0.9):
        threshold = choose_threshold(layers, ratio)
        kept = [float((shares > threshold).float().mean()) for shares, _ in layers]
        assert ratio <= sum(kept) / 2 < ratio + 0.01
        if ratio != 0.5:
            assert abs(kept[0] - kept[1]) > 0.05  # each layer has its own share
    assert choose_threshold(layers, 1.0) == -math.inf


def test_an_index_reads_the_share_of_keys_that_was_asked_for() -> None:
    """Over the queries that it was made with, and over all its segments."""
    made: list[SegmentIndex] = []
    for number in range(3):
        keys = random(2, KV_HEADS, SEGMENT_TOKENS, DIM, seed=number)
        queries = 2 * random(2, 20, HEADS, DIM, seed=10 + number)
        made.append(index_segment(SegmentRows(keys, keys, queries), made, (0.25, 0.25), 0.3))
    labels = torch.cat([one.labels.long() + 32 * n for n, one in enumerate(made)], dim=2)
    shares = []
    for layer in range(2):
        of_clusters = log_shares(
            cluster_scores(
                queries[layer], torch.cat([one.centroids[layer] for one in made], dim=2), 0.25
            ),
            torch.cat([one.counts[layer] for one in made], dim=1),
        )
        reads = (of_clusters > made[-1].threshold).gather(2, labels[layer].expand(20, -1, -1))
        shares.append(float(reads.float().mean()))
    assert 0.3 <= sum(shares) / 2 < 0.31


def test_clusters_that_are_not_read_lose_nothing_where_their_keys_are_alike() -> None:
    """Attention over what is selected, and over the rest by centroids, beside all keys."""
    which = torch.randint(0, 8, (SEGMENT_TOKENS,), generator=torch.Generator().manual_seed(3))
    kinds, kinds_of_values = random(2, KV_HEADS, 8, DIM), random(2, KV_HEADS, 8, DIM, seed=1)
    rows = SegmentRows(
        kinds[:, :, which], kinds_of_values[:, :, which], random(2, 10, HEADS, DIM, seed=2)
    )
    made = index_segment(rows, (), (0.25, 0.25), 0.2)
    index = FixedIndex(segments=(made,), places={4: 0, 5: 1}, scales={4: 0.25, 5: 0.25})
    query = random(HEADS, DIM, seed=9)
    reads, scores, values = index.select(5, query)
    assert 0 < int(reads.sum()) < reads.numel() / 2
    own = 0.25 * torch.matmul(query.view(KV_HEADS, -1, DIM), rows.keys[1].transpose(1, 2))
    expected = torch.matmul(torch.softmax(own, dim=2), rows.values[1])
    both = torch.cat([own.masked_fill(~reads[:, None], float("-inf")), scores], dim=2)
    got = torch.matmul(torch.softmax(both, dim=2), torch.cat([rows.values[1], values], dim=1))
    torch.testing.assert_close(got, expected)
