"""What an attention backend is: the attention of a packed step over the sessions' KV leases.

Letters in shapes: T rows of the batch, n of them active at a layer, H query heads, KV key-value
heads (H is a multiple of KV: the heads of one group share keys, arXiv:2305.13245), d channels a
head. Each session attends to its own positions and to nothing else, so no result may depend on
who shares the batch.

A new backend is a subclass in a file of its own and a line in `cloud.attention.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cloud.attention.packed_step import PackedStep, StepEntry


class AttentionTraits(NamedTuple):
    """How a layer attends.

    scale: factor on the scores. window: how many tokens a position sees, itself included (None:
    all of them). cap: scores become cap * tanh(scores / cap) (Gemma 2, arXiv:2408.00118,
    section 2; None: they stay as they are). sinks: [H], a score of each head that belongs to no
    token and takes its share of the softmax (gpt-oss; None: there is none).
    """

    scale: float
    window: int | None = None
    cap: float | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but the scale."""
        return self.window is None and self.cap is None and self.sinks is None


# What a layer calls: layer index, query [n, H, d], keys and values [n, 2 KV, d] (keys first),
# traits -> [n, H, d]. It stores keys and values, then attends.
Attend: TypeAlias = Callable[[int, Tensor, Tensor, AttentionTraits], Tensor]


class AttentionBackend(ABC):
    """The attention of one step. The engine makes one instance for each step.

    What the layers of a step share (tables, views, masks) is therefore made once and kept in
    the instance. A backend takes every step; what its own method cannot do, it hands to another
    backend.
    """

    name: ClassVar[str]

    def __init__(self, step: PackedStep) -> None:
        self.step = step

    @classmethod
    def runs_on(cls, device: torch.device) -> bool:
        """Whether this process can use the backend on `device`."""
        return True

    @abstractmethod
    def attend(
        self, layer: int, entries: Sequence[StepEntry], query: Tensor, traits: AttentionTraits
    ) -> Tensor:
        """Attention of the active rows at `layer`.

        entries: the step's first entries, those active at the layer; n rows together. query:
        [n, H, d], of the arena's dtype, on its device, perhaps not contiguous. The arena already
        has the keys and values of these rows. Returns [n, H, d].
        """

    def over(self, entries: Sequence[StepEntry]) -> Attend:
        """What the layers call while `entries` are the active ones."""

        def attend(
            layer: int, query: Tensor, keys_values: Tensor, traits: AttentionTraits
        ) -> Tensor:
            self.step.store(layer, keys_values)
            return self.attend(layer, entries, query, traits)

        return attend
