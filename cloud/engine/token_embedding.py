"""Rows of the embedding for token ids, read from the weight files when they are asked for.

A server that holds every layer can compute a row from its token's id (`Frame.is_tokens`). A token
needs one row of the table, so the table stays in its file: it costs no memory beside the pages that
are read. The rows are those that the model's own embedding gives for the weights of this bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloud.engine.tensor_files import TensorFiles
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME

_NAMES: Final = (EMBEDDING_NAME, HEAD_NAME)  # the head's where the embedding is the head too


class TokenEmbedding:
    """See the module's docstring. factor: what rows are multiplied by; None: nothing."""

    def __init__(self, tensors: TensorFiles, name: str, factor: float | None) -> None:
        self._tensors = tensors
        self._name = name
        self._factor = factor

    @classmethod
    def of(
        cls, tensors: TensorFiles, *, shape: tuple[int, int], is_tied: bool, factor: float | None
    ) -> TokenEmbedding | None:
        """The embedding in `tensors`; None where they hold none.

        shape: (V, D); WeightsError for a table of another one. is_tied: the head's matrix is the
        embedding.
        """
        names = [name for name in (_NAMES if is_tied else _NAMES[:1]) if tensors.has_rows(name)]
        if not names:
            return None
        tensors.check_rows(names[0], shape)
        return cls(tensors, names[0], factor)

    def rows(self, token_ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """float32 [T, D] for T ids of the vocabulary."""
        known, where = np.unique(np.asarray(token_ids, dtype=np.int64), return_inverse=True)
        table: Tensor = torch.cat([self._tensors.row(self._name, int(each)) for each in known])
        found = table[torch.from_numpy(where).reshape(-1)]
        if self._factor is not None:
            found = found * self._factor
        return np.ascontiguousarray(found.cpu().numpy(), dtype=np.float32)

    def tensor_rows(self, token_ids: Sequence[int]) -> Tensor:
        """`rows` as a tensor."""
        return torch.from_numpy(self.rows(token_ids))
