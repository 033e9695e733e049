"""Finds an optional compiled kernel, checks its ABI number, and declares its functions for ctypes.

Every kernel of this project is an extension module that Python never imports: only its shared
library is opened. A kernel that is missing or that other sources made is not an error. The caller
gets None and takes its slower path.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, Final

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CFunction:
    """One exported function: its name, its ctypes result (None: void) and argument types.

    A pointer argument is `ctypes.c_void_p`; callers pass an address, or a reference.
    """

    name: str
    result: Any
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelSpec:
    """What a caller expects of a compiled kernel. Equal to itself only, so that hashing is cheap.

    module: dotted name of the extension module, such as "codec.kernel._kernel".
    abi_function: exported `int64_t f(int32_t what)`; `f(0)` is the ABI number, and `f(i)` the size
    of the i-th structure that both sides share. abi: the expected answers, in this order.
    functions: all that the caller will call. without: what happens without the kernel, for the log.
    """

    module: str
    abi_function: str
    abi: tuple[int, ...]
    functions: tuple[CFunction, ...]
    without: str


@functools.cache
def load_kernel(spec: KernelSpec) -> ctypes.CDLL | None:
    """The opened library with all its functions declared; None (logged once) without one.

    The answer is kept for the life of the process, whichever it is.
    """
    found = importlib.util.find_spec(spec.module)
    if found is None or found.origin is None:
        _log.info("%s was not compiled: %s", spec.module, spec.without)
        return None
    try:
        library = ctypes.CDLL(found.origin)
    except OSError as error:
        _log.warning("%s is not usable: %s: %s", spec.module, spec.without, error)
        return None
    if not _declare(library, spec):
        _log.warning(
            "%s was compiled from other sources: %s; rebuild it with `pip install -e .`",
            spec.module,
            spec.without,
        )
        return None
    return library


def _declare(library: ctypes.CDLL, spec: KernelSpec) -> bool:
    """Give every function its types; False where one is missing or the ABI differs."""
    abi = CFunction(name=spec.abi_function, result=ctypes.c_int64, arguments=(ctypes.c_int32,))
    for declared in (abi, *spec.functions):
        function = getattr(library, declared.name, None)
        if function is None:
            return False
        function.restype = declared.result
        function.argtypes = declared.arguments
    answer = getattr(library, spec.abi_function)
    return all(answer(what) == expected for what, expected in enumerate(spec.abi))
