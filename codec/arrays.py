"""Array types of the codec, each named once: what an array holds, not what it means."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

U8: TypeAlias = npt.NDArray[np.uint8]
U16: TypeAlias = npt.NDArray[np.uint16]
U32: TypeAlias = npt.NDArray[np.uint32]
I8: TypeAlias = npt.NDArray[np.int8]
I16: TypeAlias = npt.NDArray[np.int16]
I32: TypeAlias = npt.NDArray[np.int32]
I64: TypeAlias = npt.NDArray[np.int64]
F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Arrays: TypeAlias = dict[str, npt.NDArray[Any]]  # by name, as a tables file lists them


def widened(halves: npt.NDArray[np.float16]) -> F32:
    """float16 values of a frame as float32, the same shape.

    A peer may send a signalling NaN. Arm processors report it when it is widened, and numpy then
    warns; x86-64 says nothing. Whoever reads the values refuses what is not finite.
    """
    with np.errstate(invalid="ignore"):
        return halves.astype(np.float32)
