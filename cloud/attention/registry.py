"""Which attention backends there are, and which one a device gets."""

from __future__ import annotations

from typing import Final

import torch

from cloud.attention.base import AttentionBackend
from cloud.attention.gathered import GatheredAttention
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.native import NativeAttention
from cloud.attention.paged import PagedAttention

BACKENDS: Final[dict[str, type[AttentionBackend]]] = {
    backend.name: backend
    for backend in (InPlaceAttention, GatheredAttention, NativeAttention, PagedAttention)
}
# By type of device, the best first; the others read in place. A CPU whose layers all suit the
# compiled kernel does not come here at all: the kernel runs whole layers
# (`cloud.engine.native_stack`). Gathering needs nothing but torch.
_PREFERRED: Final[dict[str, tuple[type[AttentionBackend], ...]]] = {
    "cuda": (PagedAttention, GatheredAttention)
}


def backend_for(device: torch.device, name: str | None = None) -> type[AttentionBackend]:
    """The backend called `name`, or the one that suits `device` best.

    Raises ValueError for a name that is unknown or that cannot run on the device.
    """
    if name is None:
        preferred = _PREFERRED.get(device.type, ())
        return next((one for one in preferred if one.runs_on(device)), InPlaceAttention)
    backend = BACKENDS.get(name)
    if backend is None:
        raise ValueError(f"attention backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if not backend.runs_on(device):
        raise ValueError(f"attention backend {name!r} does not run on {device.type} here")
    return backend
