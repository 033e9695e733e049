"""What a codec does to a model's predictions, measured on text that the fit has not seen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codec.arrays import F32, I64
from codec.ladder import Ladder, Level
from codec.levels.lossless import LosslessCodec
from codec.rows import RowCodec
from optimizer.export.calibration.hidden_states import back_logits

Progress = Callable[[str, int, int], None]  # what is being done, done, of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutRows:
    """Rows that no fit has seen. windows: [N, W] token ids; hidden: [N, W, D], at the split."""

    windows: I64
    hidden: F32

    def losses(
        self, model: PreTrainedModel, split: int, codecs: Sequence[RowCodec], progress: Progress
    ) -> list[float]:
        """KL(untouched || codec) of each codec, nats a token. Rows a codec declines stay whole."""
        ladders = [_alone(codec, self.hidden.shape[-1]) for codec in codecs]
        total = np.zeros(len(codecs))
        for done, (ids, rows) in enumerate(zip(self.windows, self.hidden, strict=True)):
            tokens = torch.from_numpy(ids)
            before = _log_probs(model, split, rows, tokens)
            weight = before.exp()
            for index, ladder in enumerate(ladders):
                frame = ladder.encode("tried", rows, ids)
                arrived = ladder.decode(frame, num_rows=len(rows), token_ids=ids)
                after = _log_probs(model, split, arrived, tokens)
                total[index] += float((weight * (before - after)).sum(-1).double().mean())
            progress("measuring levels", done + 1, len(self.windows))
        return [float(loss) for loss in total / len(self.windows)]


def _log_probs(model: PreTrainedModel, split: int, rows: F32, tokens: Tensor) -> Tensor:
    return back_logits(model, split, torch.from_numpy(rows), tokens).float().log_softmax(-1)


def _alone(codec: RowCodec, hidden_size: int) -> Ladder:
    """A ladder of lossless and this codec."""
    levels = (
        Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size)),
        Level(name="tried", codec=codec),
    )
    digest = hashlib.sha256(b"tried").hexdigest()
    return Ladder(hidden_size=hidden_size, levels=levels, tables_sha256=digest)
