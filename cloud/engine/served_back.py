"""A back as the server runs it, with one layer in memory at a time: what a build is tried with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackFiles
from cloud.kv.pool import KvPool


class ServedBack:
    """The parts of the back in a bundle's `cloud/` folder, each through the engine's own code.

    Raises WeightsError for files that are no such back.
    """

    def __init__(self, folder: Path, first_layer: int) -> None:
        self._files = BackFiles(folder, first_layer=first_layer)
        self._norm = self._files.norm()

    def entering(self, token_ids: Tensor) -> Tensor | None:
        """What enters layer 0 for int64 [T]: float32 [T, D]; None where no embedding is held."""
        embedding = self._files.embedding() if self._files.first_layer == 0 else None
        return None if embedding is None else torch.from_numpy(embedding.rows(token_ids.tolist()))

    def after(self, layer: int, rows: Tensor) -> Tensor:
        """What a layer gives of one sequence's rows: float32 [T, D] -> [T, D].

        The last rows come one at a time, as in decoding.
        """
        module = self._files.layer(layer)
        self._files.unmap()
        head = torch.nn.Linear(1, 1, device="meta")
        engine = BackEngine(self._files.model_of(layer, (module,), self._norm, head))
        shape, count = engine.kv_shape, len(rows)
        limit = shape.num_bytes(split=layer, max_tokens=count)
        lease = KvPool(shape, limit_bytes=limit).lease(split=layer, max_tokens=count)
        many = max(1, count - 4)
        parts = [rows[:many], *rows[many:].split(1)] if count > many else [rows]
        return torch.cat([engine.hidden(lease, part) for part in parts])

    def logits(self, rows: Tensor, num_tokens: int) -> Tensor:
        """Logits float32 [T, num_tokens] of the first tokens, of rows that the last layer gave."""
        head = self._files.head_rows(num_tokens)
        self._files.unmap()
        last = self._files.num_layers
        return BackEngine(self._files.model_of(last, (), self._norm, head)).logits(rows)
