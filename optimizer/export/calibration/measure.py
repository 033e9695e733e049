"""What a codec does to a model's predictions, measured on text that the fit has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codec.arrays import F32, F64, I64
from codec.ladder import Ladder, Level
from codec.levels.lossless import LosslessCodec
from codec.rows import RowCodec
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import Progress, finish
from optimizer.export.layers.rows_on_disk import HiddenRows


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """Rows that no fit has seen. windows: [N, W] token ids; hidden: [N, W, D], at the split."""

    windows: I64
    hidden: F32

    def losses(
        self, model: LayeredModel, split: int, codecs: Sequence[RowCodec], progress: Progress
    ) -> list[float]:
        """KL(untouched || codec) of each codec, nats a token. Rows a codec declines stay whole.

        Rows that a codec touched go through the model in bfloat16 where that is faster. What
        bfloat16 itself costs is measured on rows that none touched, and taken off: its errors have
        nothing to do with a codec's, so the losses add up.
        """
        sets = [self.hidden, *(self._sent_through(codec) for codec in codecs)]
        exact = _finished(model, split, [self.hidden], progress, what="measuring the model")
        model.release()
        total = np.zeros(len(sets))
        count = len(self.windows)
        with model.in_bfloat16():
            touched = _finished(model, split, sets, progress, what="measuring levels")
            for at in range(count):
                others = [touched.read(i, i + 1)[0] for i in range(at, len(touched), count)]
                total += _kls(model, exact.read(at, at + 1)[0], others)
        exact.close()
        touched.close()
        model.release()
        return [max(0.0, float(loss)) for loss in (total[1:] - total[0]) / count]

    def _sent_through(self, codec: RowCodec) -> F32:
        """The rows [N, W, D] as they arrive."""
        ladder = _alone(codec, self.hidden.shape[-1])
        arrived = [
            ladder.decode(ladder.encode("tried", sent, ids), num_rows=len(sent), token_ids=ids)
            for ids, sent in zip(self.windows, self.hidden, strict=True)
        ]
        return np.stack(arrived)


def _finished(
    model: LayeredModel, split: int, sets: Sequence[F32], progress: Progress, *, what: str
) -> HiddenRows:
    """Sets of rows [N, W, D] at the split, one after the other, after the last layer."""
    rows = model.new_rows(sum(len(part) for part in sets), sets[0].shape[1])
    begin = 0
    for part in sets:
        rows.write(begin, torch.from_numpy(part))
        begin += len(part)
    finish(model, rows, split, progress, what=what)
    return rows


def _kls(model: LayeredModel, untouched: Tensor, others: Sequence[Tensor]) -> F64:
    """Mean over positions of KL(untouched || other), for rows [T, D] after the last layer."""
    total = np.zeros(len(others))
    with torch.no_grad():
        for begin, end in model.logit_pieces(len(untouched)):
            before = model.logits(untouched[begin:end], exact=True).log_softmax(-1)
            share = before.exp()
            for index, rows in enumerate(others):
                # KL = log(sum p e^d) - sum p d, d the change of the logits: in place, and exact
                # where d is small.
                change = model.logits(rows[begin:end]).sub_(before)
                change.sub_(_dot(share, change))
                total[index] += float(_dot(share, change.exp_()).log_().double().sum())
    return total / len(untouched)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Sums [T, 1] of products along the rows of [T, V]."""
    return torch.einsum("tv,tv->t", left, right)[:, None]


def _alone(codec: RowCodec, hidden_size: int) -> Ladder:
    """A ladder of lossless and this codec."""
    levels = (
        Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size)),
        Level(name="tried", codec=codec),
    )
    digest = hashlib.sha256(b"tried").hexdigest()
    return Ladder(hidden_size=hidden_size, levels=levels, tables_sha256=digest)
