"""Experts with int8 weights: each expert's rows through integer layers, as other matrices go.

transformers holds all experts of a layer as float matrices [E, N, K]. Here each expert has two
layers of its own (`int8_linear`). A row's result does not depend on the rows beside it, and is
added up in the order of the experts' numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Int8Experts(nn.Module):
    """See the module's docstring. gated: makes [T, 2 I] of gate and up [T, I]."""

    def __init__(self, gated: Any, up: Sequence[nn.Module], down: Sequence[nn.Module]) -> None:
        super().__init__()
        self.up = nn.ModuleList(up)
        self.down = nn.ModuleList(down)
        self._gated = gated

    def forward(self, rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """rows [T, D]; chosen int64 [T, k] and their weights [T, k] -> [T, D]."""
        out = torch.zeros_like(rows)
        for expert in torch.unique(chosen).tolist():
            at, place = torch.where(chosen == expert)
            made = self.down[expert](self._gated(self.up[expert](rows[at])))
            out.index_add_(0, at, made * weights[at, place, None])
        return out


def gated_by(module: Any) -> Any:
    """The gate of transformers' experts, as a function of [T, 2 I]."""
    if hasattr(module, "_apply_gate"):
        return module._apply_gate

    def gated(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        product: Tensor = module.act_fn(gate) * up
        return product

    return gated
