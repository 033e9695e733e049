"""Memory of a segment's keys or values: on this side, or where the provider's kernels run.

Kernels append in place, so past and present are one buffer. On the CPU it is an array that ONNX
Runtime uses as it is. Elsewhere ONNX Runtime holds it, and reading it copies.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from hwprofiles.providers.table import TensorDevice


class CacheBuffer(Protocol):
    """Keys or values of one layer, [1, G, capacity, size]."""

    value: ort.OrtValue  # to be bound as past and as present
    capacity: int
    nbytes: int

    def first(self, num_tokens: int) -> npt.NDArray[Any]:
        """Of the first tokens: [1, G, num_tokens, size]. It may be the memory itself."""
        ...

    def move_rows(self, slots: npt.NDArray[np.int64], to: int) -> None:
        """Put the rows of these rising slots, none before `to`, side by side from `to` on."""
        ...


class HostBuffer:
    """In an array of this process. values: [1, G, capacity, size]; it is used, not copied."""

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self._values = values
        self.value = ort.OrtValue.ortvalue_from_numpy(values)  # in the array's own memory
        self.capacity = int(values.shape[2])
        self.nbytes = int(values.nbytes)

    def first(self, num_tokens: int) -> npt.NDArray[Any]:
        """See CacheBuffer."""
        return self._values[:, :, :num_tokens]

    def move_rows(self, slots: npt.NDArray[np.int64], to: int) -> None:
        """See CacheBuffer. Copies the rows of one head at a time."""
        for head in self._values[0]:
            head[to : to + len(slots)] = head[slots]


class DeviceBuffer:
    """In memory that ONNX Runtime allocates on `device`. values: [1, G, capacity, size], copied."""

    def __init__(self, values: npt.NDArray[Any], device: TensorDevice) -> None:
        self.value = ort.OrtValue.ortvalue_from_shape_and_type(
            values.shape, values.dtype.type, device, 0
        )
        self.value.update_inplace(np.ascontiguousarray(values))
        self.capacity = int(values.shape[2])
        self.nbytes = int(values.nbytes)

    def first(self, num_tokens: int) -> npt.NDArray[Any]:
        """See CacheBuffer. Copies the whole buffer."""
        whole: npt.NDArray[Any] = self.value.numpy()
        return whole[:, :, :num_tokens]

    def move_rows(self, slots: npt.NDArray[np.int64], to: int) -> None:
        """See CacheBuffer. Copies the whole buffer, there and back."""
        whole = np.array(self.value.numpy())
        whole[:, :, to : to + len(slots)] = whole[:, :, slots]
        self.value.update_inplace(whole)


def cache_buffer(values: npt.NDArray[Any], device: TensorDevice) -> CacheBuffer:
    """A buffer on `device` that begins with these values, [1, G, capacity, size]."""
    return HostBuffer(values) if device == "cpu" else DeviceBuffer(values, device)
