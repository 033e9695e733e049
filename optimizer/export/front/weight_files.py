"""Where a front's weights lie: one file beside the graph, written as the graph grows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import ModelError

INLINE_BYTES: Final = 1024  # smaller weights stay in the graph
ALIGNMENT: Final = 64
PAGE_ALIGNMENT: Final = 4096  # of weights that a device may map by themselves
LARGE_BYTES: Final = 1 << 20


class WeightFile:
    """A `WeightStore` that appends to a file. Nothing large stays in memory.

    place: the model, as messages name it.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path = path
        self._place = place
        self._stream = path.open("wb")

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def put(self, name: str, values: npt.NDArray[Any]) -> onnx.TensorProto:
        """Keep the values. Raises ModelError for values that are not finite."""
        if values.nbytes < INLINE_BYTES:
            self._check(name, values)
            return numpy_helper.from_array(np.ascontiguousarray(values), name)
        return self.put_parts(name, values.dtype, values.shape, [values])

    def put_parts(
        self, name: str, dtype: Any, shape: Sequence[int], parts: Iterable[npt.NDArray[Any]]
    ) -> onnx.TensorProto:
        """The same for values that come in parts, one after the other, along the first axis."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        step = PAGE_ALIGNMENT if size >= LARGE_BYTES else ALIGNMENT
        offset = self._stream.tell()
        self._stream.write(bytes(-offset % step))
        offset += -offset % step
        for part in parts:
            self._check(name, part)
            self._stream.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        written = self._stream.tell() - offset
        if written != size:
            raise ValueError(f"{name}: {written} bytes were written, {size} announced")
        tensor = TensorProto(
            name=name,
            dims=shape,
            data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._path.name), ("offset", offset), ("length", size)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        return tensor

    def _check(self, name: str, values: npt.NDArray[Any]) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ModelError(
                f"{self._place}: {name} is not finite with these --front-bits; its values "
                "are too large, choose --front-bits 32"
            )
