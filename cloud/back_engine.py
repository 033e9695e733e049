"""The back of the model over a packed batch with ragged entry.

Sessions enter at their own layer. A batch's rows are ordered by split, so the rows that are
active at a layer are a prefix of the packed matrix, and those that join are appended to it:
every layer runs once, on all rows that have reached it, whoever they belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cloud.attention import PackedStep, StepEntry
from cloud.back_weights import BackModel, load_back
from cloud.kv_pool import KvLease, KvShape
from cloud.rotary import RotaryTables, max_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """One session's rows: hidden states float32 [T, D] that enter layer `lease.split`.

    They take positions `lease.length` on. The last `num_logits` of them need logits.
    """

    lease: KvLease
    rows: Tensor
    num_logits: int


class BackEngine:
    """Runs packed batches. Not thread-safe: one thread owns it."""

    def __init__(self, model: BackModel) -> None:
        self.model = model
        self._rotary = RotaryTables(model.rotary, model.config, model.dtype)

    @classmethod
    def load(
        cls, folder: Path, *, first_layer: int, device: torch.device | str = "cpu"
    ) -> BackEngine:
        """Load the back from a bundle's `cloud/` folder. Raises WeightsError."""
        return cls(load_back(folder, first_layer=first_layer, device=device))

    @property
    def first_layer(self) -> int:
        return self.model.first_layer

    @property
    def num_layers(self) -> int:
        return self.model.num_layers

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """Longest sequence that a session may have."""
        return max_positions(self.model.config)

    @property
    def kv_shape(self) -> KvShape:
        config = self.model.config
        head_dim = getattr(config, "head_dim", None)
        return KvShape(
            num_layers=self.num_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            dtype=self.model.dtype,
        )

    @torch.inference_mode()
    def forward(self, batch: Sequence[BatchEntry]) -> list[Tensor]:
        """Run one batch; every lease grows by its entry's rows.

        Returns float32 logits [num_logits, V] of each entry, in the order of `batch`. A session
        may appear once. Rows before the last `num_logits` only fill the KV cache.
        """
        order = sorted(range(len(batch)), key=lambda index: batch[index].lease.split)
        entries: list[StepEntry] = []
        positions: list[int] = []
        end = 0
        for index in order:
            lease, num_rows = batch[index].lease, batch[index].rows.shape[0]
            entries.append(StepEntry(lease, start=lease.length, begin=end, num_rows=num_rows))
            positions.extend(range(lease.length, lease.length + num_rows))
            end += num_rows
        device = self.model.device
        rotary = self._rotary.rows(
            torch.tensor(positions, device=device), max(positions, default=0) + 1
        )
        step = PackedStep(entries)
        hidden = torch.empty((0, self.hidden_size), dtype=self.model.dtype, device=device)
        joined = 0
        for layer in range(batch[order[0]].lease.split, self.num_layers + 1):
            first = joined
            while joined < len(order) and batch[order[joined]].lease.split == layer:
                joined += 1
            if joined > first:
                rows = [batch[index].rows for index in order[first:joined]]
                hidden = torch.cat([hidden, *(r.to(device, self.model.dtype) for r in rows)])
            if layer < self.num_layers:
                step.active = entries[:joined]
                hidden = self._run_layer(layer, hidden, rotary, step)
        for entry in entries:
            entry.lease.length = entry.start + entry.num_rows
        return self._logits(hidden, batch, order, entries)

    def _run_layer(
        self,
        layer: int,
        hidden: Tensor,
        rotary: dict[str, tuple[Tensor, Tensor]],
        step: PackedStep,
    ) -> Tensor:
        num_rows = hidden.shape[0]
        cos, sin = rotary[self._rotary.type_of_layer[layer]]
        out = self.model.layers[layer - self.first_layer](
            hidden[None],
            attention_mask=None,
            position_embeddings=(cos[None, :num_rows], sin[None, :num_rows]),
            step=step,
        )
        # Layers return the tensor, or in older versions a tuple that begins with it.
        rows: Tensor = (out[0] if isinstance(out, tuple) else out)[0]
        return rows

    def _logits(
        self,
        hidden: Tensor,
        batch: Sequence[BatchEntry],
        order: Sequence[int],
        entries: Sequence[StepEntry],
    ) -> list[Tensor]:
        """Norm and head on the rows that need them, given back in the batch's order."""
        wanted: list[int] = []
        spans: list[tuple[int, int]] = [(0, 0)] * len(batch)
        for index, entry in zip(order, entries, strict=True):
            count = batch[index].num_logits
            spans[index] = (len(wanted), len(wanted) + count)
            wanted.extend(range(entry.end - count, entry.end))
        if wanted:
            if len(wanted) < hidden.shape[0]:
                hidden = hidden[torch.tensor(wanted, device=hidden.device)]
            logits = self.model.head(self.model.norm(hidden)).float()
            if cap := self.model.final_softcap:
                logits = logits.div_(cap).tanh_().mul_(cap)
        else:
            logits = torch.empty((0, self.model.config.vocab_size), device=hidden.device)
        return [logits[begin:end] for begin, end in spans]
