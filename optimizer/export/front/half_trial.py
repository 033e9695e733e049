"""Tries a 16-bit front's products as a device computes them in 16 bits, layer by layer, on text.

Two things are looked at. No partial sum may overflow, in whatever order a kernel adds: for every
output the sum of |x| |w| must be below float16's largest number. And the products must be near
those of 32 bits: a kernel of the CPU's adds in 16 bits, one number after the other. The errors of
some rows are computed so. What a build's processor makes of the second graph says nothing: ONNX
Runtime widens the products where it has no kernel. The limits are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

F32 = npt.NDArray[np.float32]
LARGEST_HALF: Final = 65504.0
ADDED_ROWS: Final = 4  # whose products are added in 16 bits
# SmolLM2's products are 0.2 to 0.6 % off. The rounding errors of a sum grow with the root of its
# length. Beyond this limit the sums cancel.
MOST_ERROR: Final = 0.05


@dataclass(slots=True)
class HalfTrial:
    """What the products showed. errors: of each node, the median over rows of ||half - wide|| over
    ||wide||. too_large: nodes with a sum that 16 bits may not hold, and the largest sum."""

    errors: dict[str, float] = field(default_factory=dict)
    too_large: dict[str, float] = field(default_factory=dict)

    def look_at(self, products: Mapping[str, tuple[F32, F32]]) -> None:
        """products: by node, rows [T, K] that enter it and its matrix [K, N], or one after the
        other parts of the matrix along N."""
        for node, (rows, matrix) in products.items():
            x, w = torch.from_numpy(rows), torch.from_numpy(matrix)
            largest = max(float(x.abs().max()), float((x.abs() @ w.abs()).max()))
            if not largest < LARGEST_HALF:
                self.too_large[node] = max(largest, self.too_large.get(node, 0.0))
                continue
            some = x[:ADDED_ROWS]
            wide = some @ w
            length = torch.linalg.vector_norm(wide, dim=-1).clamp_min(1e-12)
            error = torch.linalg.vector_norm(added_in_halves(some, w) - wide, dim=-1) / length
            self.errors[node] = max(float(error.median()), self.errors.get(node, 0.0))

    @property
    def fault(self) -> str:
        """Why the products cannot be computed in 16 bits; empty where they can."""
        if self.too_large:
            node, largest = max(self.too_large.items(), key=lambda pair: pair[1])
            return f"sums in {_shown(node)} reach {largest:,.0f}, and float16 ends at 65,504"
        node, error = max(self.errors.items(), key=lambda pair: pair[1], default=("", 0.0))
        if not error <= MOST_ERROR:
            return f"{_shown(node)} is {100 * error:.2g} % off, at most {100 * MOST_ERROR:g} %"
        return ""


def added_in_halves(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows [T, K] times [K, N], float32: numbers, products and partial sums in float16, each
    multiplied and added with one rounding."""
    x, w = rows.half().float(), matrix.half().float()
    total = torch.zeros(len(rows), matrix.shape[1], dtype=torch.float16)
    for k in range(len(w)):
        total = torch.addcmul(total.float(), x[:, k : k + 1], w[k : k + 1]).half()
    return total.float()


def _shown(node: str) -> str:
    return node.strip("/").removesuffix("/MatMul")
