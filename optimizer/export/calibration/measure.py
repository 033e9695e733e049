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


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """Rows that no fit has seen. windows: [N, W] token ids; hidden: [N, W, D], at the split."""

    windows: I64
    hidden: F32

    def losses(
        self, model: LayeredModel, split: int, codecs: Sequence[RowCodec], progress: Progress
    ) -> list[float]:
        """KL(untouched || codec) of each codec, nats a token. Rows a codec declines stay whole."""
        ladders = [_alone(codec, self.hidden.shape[-1]) for codec in codecs]
        count, window = self.windows.shape
        rows = model.new_rows(count * (1 + len(codecs)), window)
        for at, (ids, sent) in enumerate(zip(self.windows, self.hidden, strict=True)):
            rows.write(at, torch.from_numpy(sent)[None])
            for index, ladder in enumerate(ladders):
                frame = ladder.encode("tried", sent, ids)
                arrived = ladder.decode(frame, num_rows=len(sent), token_ids=ids)
                rows.write((1 + index) * count + at, torch.from_numpy(arrived)[None])
        finish(model, rows, split, progress, what="measuring levels")
        losses = np.zeros(len(codecs))
        for at in range(count):
            untouched = rows.read(at, at + 1)[0]
            others = [rows.read(i, i + 1)[0] for i in range(count + at, len(rows), count)]
            losses += _kls(model, untouched, others)
        rows.close()
        model.drop_head()
        return [float(loss) for loss in losses / count]


def _kls(model: LayeredModel, untouched: Tensor, others: Sequence[Tensor]) -> F64:
    """Mean over positions of KL(untouched || other), for rows [T, D] after the last layer."""
    total = np.zeros(len(others))
    with torch.no_grad():
        for begin, end in model.logit_pieces(len(untouched)):
            before = model.logits(untouched[begin:end]).log_softmax(-1)
            weight = before.exp()
            for index, rows in enumerate(others):
                after = model.logits(rows[begin:end]).log_softmax(-1)
                total[index] += float((weight * (before - after)).sum(-1).double().sum())
    return total / len(untouched)


def _alone(codec: RowCodec, hidden_size: int) -> Ladder:
    """A ladder of lossless and this codec."""
    levels = (
        Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size)),
        Level(name="tried", codec=codec),
    )
    digest = hashlib.sha256(b"tried").hexdigest()
    return Ladder(hidden_size=hidden_size, levels=levels, tables_sha256=digest)
