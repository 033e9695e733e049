"""Where a layered model gets its tensors: a `ModelSource`, or a whole model that is in memory."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel


class TensorSource(Protocol):
    """What is read of a model. `ModelSource` is one, and checks what it reads."""

    @property
    def config(self) -> Any:
        """The transformers config."""

    @property
    def place(self) -> Path:
        """Folder or file, as messages name it."""

    @property
    def tensor_names(self) -> Set[str]:
        """Names of all tensors. The head's is absent where it is the embedding."""

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in its stored type."""


class ModelTensors:
    """The tensors of a transformers model in memory, for tests and measurements."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.place = Path(type(model).__name__)
        self._tensors: dict[str, Tensor] = dict(model.state_dict())

    @property
    def tensor_names(self) -> Set[str]:
        """See TensorSource."""
        return self._tensors.keys()

    def read(self, name: str) -> Tensor:
        """See TensorSource."""
        return self._tensors[name].detach()
