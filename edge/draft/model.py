"""Any small model of the same tokenizer as a drafter, run wholly on the device.

The classic draft model (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023,
arXiv:2302.01318), here with one-hot drafts: its likeliest token. It is a bundle whose plan puts
every layer on the edge, so the front engine runs it, with a cache of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edge.device.front import FrontEngine
from edge.device.whole_model import WholeModel
from edge.draft.base import Drafter, DrafterKind, DraftResources, Guess, Rows
from optimizer.artifacts.bundle import Bundle


class DraftModel:
    """A small model's bundle, opened once for all generations of a device.

    root: its folder. like: the bundle that it drafts for. threads: of its kernels.
    memory_limit_bytes: of this process, if it has a limit. Raises InputError when the model does
    not lie wholly on the edge or has another tokenizer.
    """

    def __init__(
        self,
        root: Path,
        *,
        like: Bundle,
        threads: int | None = None,
        memory_limit_bytes: int | None = None,
    ) -> None:
        self._model = WholeModel(
            root,
            like=like,
            what="a draft model",
            threads=threads,
            memory_limit_bytes=memory_limit_bytes,
        )

    def drafter(self) -> ModelDrafter:
        """A drafter with a cache of its own."""
        plan = self._model.plan
        return ModelDrafter(
            self._model.engine(),
            max_tokens=plan.max_tokens,
            chunk_tokens=plan.prefill_chunk,
            vocab_size=plan.model.geometry.vocab_size,
        )


class ModelDrafter:
    """See the module's docstring. engine: of a whole-edge plan, with an empty cache.

    max_tokens: the longest sequence that it follows. chunk_tokens: the most tokens a forward.
    vocab_size: of the small model. Models of one tokenizer may have different numbers of rows; a
    token that only the large one has ends the guessing.
    """

    def __init__(
        self, engine: FrontEngine, *, max_tokens: int, chunk_tokens: int, vocab_size: int
    ) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._chunk_tokens = chunk_tokens
        self._vocab_size = vocab_size
        self._pending: list[int] = []  # tokens that the model has not seen yet
        self._logits: npt.NDArray[np.float32] | None = None  # after the last token it saw

    def extend(self, token_ids: Sequence[int], rows: Rows | None) -> None:
        """See Drafter; the rows are another model's and not looked at."""
        self._pending.extend(token_ids)

    def rollback(self, num_tokens: int) -> None:
        """See Drafter."""
        num_seen = self._engine.num_tokens
        if num_tokens < num_seen:
            self._engine.rollback(num_tokens)
            self._logits = None
        del self._pending[max(num_tokens - num_seen, 0) :]

    def guesses(self) -> tuple[Guess, ...]:
        """See Drafter: one. The kind is `model-N`, N the token's probability in tenths."""
        if self._engine.num_tokens + len(self._pending) > self._max_tokens:
            return ()
        if any(token_id >= self._vocab_size for token_id in self._pending):
            return ()
        while self._pending:
            chunk = np.asarray(self._pending[: self._chunk_tokens], dtype=np.int64)
            self._logits = self._engine.forward(chunk)[-1]  # [V]
            del self._pending[: len(chunk)]
        if self._logits is None:
            return ()
        best = int(self._logits.argmax())
        share = 1.0 / float(np.exp(self._logits - self._logits[best]).sum())
        tenth = min(int(10 * share), 9)
        return (Guess(best, f"model-{tenth}", tenth / 10 + 0.05),)


def _open(resources: DraftResources) -> Callable[[], Drafter] | None:
    if resources.model is None:
        return None
    return DraftModel(
        resources.model,
        like=resources.bundle,
        threads=resources.threads,
        memory_limit_bytes=resources.memory_limit_bytes,
    ).drafter


KIND: Final = DrafterKind(
    name="model",
    open=_open,
    missing="drafting by a model needs its bundle (--draft-model)",
)
