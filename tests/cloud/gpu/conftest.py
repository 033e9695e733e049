"""Without a GPU, Triton's interpreter runs the kernels: chosen before `cloud.gpu` is imported.

transformers imports Triton earlier. So kernels that run here can only call what `triton.language`
has built in, not its functions that are kernels themselves (`zeros`, `sum`, `cdiv`).
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
