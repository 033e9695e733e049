"""Types that a server on a GPU can hold the linear layers' weights in, by name. Loads no torch."""

from __future__ import annotations

from typing import Final

BF16: Final = "bf16"
FP8: Final = "fp8"
INT8: Final = "int8"
INT4: Final = "int4"
WEIGHT_TYPES: Final = (BF16, FP8, INT8, INT4)
KV_TYPES: Final = (BF16, FP8)  # what it can keep keys and values in
