"""A model's numbers: what planning, costs and the wire need to know of it, without weights.

The build machine reads them from a Hugging Face config (`optimizer.export.sources`). The plan
stores them, and a device reads them back without torch or transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from optimizer.errors import ModelError

# Far beyond every model there is. A plan with more is a mistake, or meant to fill the memory.
MAX_LAYERS: Final = 1024
MAX_SIZE: Final = 1 << 31
# The device's attention kernel takes heads of a multiple of so many channels.
DEVICE_HEAD_STEP: Final = 16


def device_head_dim(head_dim: int) -> int:
    """Channels that a head of `head_dim` takes on the device: padded with zeros."""
    return head_dim + -head_dim % DEVICE_HEAD_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGeometry:
    """Shape of one decoder-only language model.

    `hidden_size` is D, the width of the residual stream that the link carries. `num_kv_heads` is
    smaller than `num_heads` under grouped-query attention. `sliding_window` is the window in tokens
    of the layers that have one (None: every layer sees everything). `sliding_layers` lists those
    layers; where it is empty and there is a window, all layers have it. `gated_mlp`: an MLP has two
    matrices that go up. `num_experts`: MLPs of a layer, each of `expert_size` channels, of which a
    token goes through `experts_per_token`; 0: one MLP of `intermediate_size`. Raises ModelError for
    numbers that no model has.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    tied_embeddings: bool
    attention_bias: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    gated_mlp: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "context_length",
        ):
            most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
            if not 1 <= getattr(self, name) <= most:
                raise ModelError(f"model geometry: {name} must lie between 1 and {most}")
        if not 0 <= self.experts_per_token <= self.num_experts <= MAX_SIZE:
            raise ModelError(
                f"model geometry: {self.experts_per_token} of {self.num_experts} experts a token"
            )
        if self.num_experts and not (self.experts_per_token and 1 <= self.expert_size <= MAX_SIZE):
            raise ModelError("model geometry: experts without a size, or none for a token")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"model geometry: {self.num_heads} heads do not divide among "
                f"{self.num_kv_heads} KV heads"
            )

    def window_of_layer(self, layer: int) -> int | None:
        """How many tokens a token of this layer sees, itself included (None: all of them)."""
        if self.sliding_window is None:
            return None
        slides = not self.sliding_layers or layer in self.sliding_layers
        return self.sliding_window if slides else None

    @property
    def device_head_dim(self) -> int:
        """Channels of a head in the device's cache."""
        return device_head_dim(self.head_dim)

    def device_kv_bytes(self, *, num_layers: int, num_tokens: int, kv_bits: int) -> int:
        """`kv_bytes` on the device, whose heads are padded."""
        padded = replace(self, head_dim=self.device_head_dim)
        return padded.kv_bytes(num_layers=num_layers, num_tokens=num_tokens, kv_bits=kv_bits)

    def kv_bytes(self, *, num_layers: int, num_tokens: int, kv_bits: int) -> int:
        """Bytes of K and V of `num_layers` layers for `num_tokens` tokens at `kv_bits` bits.

        Source: arXiv:2511.04002, B_kv without the hand-over terms: 2 * layers * T_w * Q_a.
        """
        return 2 * num_layers * num_tokens * self.num_kv_heads * self.head_dim * kv_bits // 8
