"""Environment variables of the GPU's kernels. Loads nothing."""

from __future__ import annotations

from typing import Final

# "1": kernels may begin before their predecessor has ended (`cloud.gpu.overlap`).
OVERLAP_VARIABLE: Final = "SPLITPOINT_GPU_OVERLAP"
