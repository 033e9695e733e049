"""Keys and values that come into a session's blocks from elsewhere: the edge, or an older lease.

Only the model thread may call these, like everything that writes the arena.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cloud.kv.pool import ArenaSpan, KvLease
from codec.kv.frame import KeysValues


class _Piece(NamedTuple):
    """The same positions in two leases: runs of the arena of equal length."""

    source: ArenaSpan
    target: ArenaSpan


def fits_arena(lease: KvLease, kv: KeysValues) -> bool:
    """Whether the arena's type holds all of these numbers: a narrow one reaches less far."""
    most = torch.finfo(lease.pool.arena.dtype).max
    return bool(abs(kv).max() <= most)


def write_kv(lease: KvLease, *, first_layer: int, begin: int, kv: KeysValues) -> None:
    """Write float32 [T, n, 2, G, d] of the layers from `first_layer` on, positions from `begin`."""
    arena = lease.pool.arena
    values = torch.from_numpy(kv).to(arena.device, arena.dtype).flatten(2, 3)  # [T, n, 2 G, d]
    at = 0
    for row, stride, count in lease.spans(begin, begin + len(kv)):
        for index in range(kv.shape[1]):
            base = row + (first_layer + index - lease.split) * stride
            arena[base : base + count] = values[at : at + count, index]
        at += count


def copy_kv(source: KvLease, target: KvLease, *, begin: int, end: int) -> None:
    """Copy positions [begin, end) of all layers of `source`, which are layers of `target` too."""
    skipped = source.split - target.split
    for piece in _pieces(source, target, begin, end):
        into = piece.target._replace(row=piece.target.row + skipped * piece.target.stride)
        _view(target, into, source.num_layers).copy_(_view(source, piece.source, source.num_layers))


def _view(lease: KvLease, span: ArenaSpan, num_layers: int) -> Tensor:
    """A span of so many layers of the arena, [layers, rows, 2 G, d]."""
    arena = lease.pool.arena
    heads, size = arena.shape[1:]
    row = heads * size
    return arena.as_strided(
        (num_layers, span.num_rows, heads, size),
        (span.stride * row, row, size, 1),
        arena.storage_offset() + span.row * row,
    )


def _pieces(source: KvLease, target: KvLease, begin: int, end: int) -> Iterator[_Piece]:
    """Positions [begin, end) cut where either of the leases goes on in another extent."""
    sources, targets = source.spans(begin, end), target.spans(begin, end)
    one, other = next(sources), next(targets)
    while begin < end:
        count = min(one.num_rows, other.num_rows)
        yield _Piece(one._replace(num_rows=count), other._replace(num_rows=count))
        begin += count
        one, other = _behind(one, count), _behind(other, count)
        if begin < end:
            one = one if one.num_rows else next(sources)
            other = other if other.num_rows else next(targets)


def _behind(span: ArenaSpan, count: int) -> ArenaSpan:
    return span._replace(row=span.row + count, num_rows=span.num_rows - count)
