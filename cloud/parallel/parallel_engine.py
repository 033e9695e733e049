"""A back over several ranks, with the face of `BackEngine`: rank 0's share, and the followers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackModel, LayerProgress
from cloud.engine.batch_entry import BatchEntry
from cloud.errors import EngineError
from cloud.kv.pool import KvPool, KvShape
from cloud.parallel.followers import Followers
from cloud.parallel.free_memory import free_bytes
from cloud.parallel.group import GroupSwitch
from cloud.parallel.shared_back import SharedBackFiles
from cloud.parallel.step_message import step_fields


class ParallelEngine:
    """Runs packed batches over all ranks. `make_pool` comes before the first batch.

    weights_bytes: of all ranks together. The forward pass is not thread-safe.
    """

    def __init__(
        self,
        local: BackEngine,
        followers: Followers,
        switch: GroupSwitch,
        *,
        whole_kv_heads: int,
        weights_bytes: int,
        free_bytes_of_rank: int,
    ) -> None:
        self.weights_bytes = weights_bytes
        self._local = local
        self._followers = followers
        self._switch = switch
        self._whole_kv_heads = whole_kv_heads
        self._free_bytes_of_rank = free_bytes_of_rank

    @classmethod
    def load(
        cls,
        followers: Followers,
        folder: Path,
        *,
        first_layer: int,
        weight_files: Sequence[Path],
        reference: Path | None = None,
        verify: bool = False,
        progress: LayerProgress | None = None,
    ) -> ParallelEngine:
        """Load every rank's share at the same time. Arguments are those of `load_back`.

        Raises StartError (also WeightsError).
        """
        back: dict[str, Any] = {
            "folder": str(folder.absolute()),
            "first_layer": first_layer,
            "weight_files": [str(one.absolute()) for one in weight_files],
            "reference": None if reference is None else str(reference.absolute()),
        }
        followers.ask("load", back=back)
        device = torch.device(followers.devices[0])
        files = SharedBackFiles(
            folder,
            group=followers.group,
            first_layer=first_layer,
            device=device,
            weight_files=weight_files,
            reference=reference,
            verify=verify,
        )
        model = files.model(progress) if progress is not None else files.model()
        weights_bytes = model.num_bytes  # before the kernel packs them
        local = BackEngine(model)
        loaded = followers.answers("loaded")
        followers.join()
        return cls(
            local,
            followers,
            files.switch,
            whole_kv_heads=int(files.whole_config.num_key_value_heads),
            weights_bytes=weights_bytes + sum(one["num_bytes"] for one in loaded),
            free_bytes_of_rank=min(free_bytes(device), *(one["free_bytes"] for one in loaded)),
        )

    @property
    def model(self) -> BackModel:
        """Rank 0's share of the model."""
        return self._local.model

    @property
    def is_native(self) -> bool:
        """See BackEngine: sums over ranks come between the layers' parts, so it never is."""
        return self._local.is_native

    @property
    def first_layer(self) -> int:
        """The lowest layer whose weights are here."""
        return self._local.first_layer

    @property
    def num_layers(self) -> int:
        """L, counting the layers that are not here."""
        return self._local.num_layers

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return self._local.hidden_size

    @property
    def max_positions(self) -> int:
        """Longest sequence that a session may have."""
        return self._local.max_positions

    @property
    def kv_shape(self) -> KvShape:
        """What a token's keys and values cost on all ranks together."""
        return replace(self._local.kv_shape, num_kv_heads=self._whole_kv_heads)

    @property
    def free_bytes(self) -> int:
        """Memory for KV caches on all ranks together: no rank can give more than the fullest."""
        ranks = self._followers.size if self.model.device.type == "cuda" else 1
        return self._free_bytes_of_rank * ranks

    def make_pool(self, limit_bytes: int, reclaim: Callable[[], bool] = lambda: False) -> KvPool:
        """A pool whose arena every rank has, for its own KV heads. limit_bytes: of all together.

        Raises StartError where a rank cannot allocate it.
        """
        pool = KvPool(
            self.kv_shape,
            limit_bytes=limit_bytes,
            device=self.model.device,
            reclaim=reclaim,
            num_ranks=self._followers.size,
        )
        self._followers.ask("arena", num_blocks=pool.num_blocks)
        self._followers.answers("ready")
        self._switch.is_on = True
        return pool

    def forward(self, batch: Sequence[BatchEntry]) -> list[Tensor]:
        """See `BackEngine.forward`. Raises EngineError; then no step runs here any more."""
        self._followers.tell(*step_fields(batch))
        try:
            return self._local.forward(batch)
        except Exception as error:  # whatever it was: the other ranks are at another place now
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reason = f"a step failed on rank 0 of {self._followers.size}: {lines[0][:200]}"
            raise EngineError(self._followers.fail(reason)) from error

    def trouble(self) -> str | None:
        """Why no step can run any more; None: it can."""
        return self._followers.trouble()
