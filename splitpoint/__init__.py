"""Splitpoint: one large language model across an edge device and a cloud server.

The public Python API, loaded on first use so that `import splitpoint` stays light:

    from splitpoint import EdgeClient, CompletionRequest, SamplingParams
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from decoding.params import SamplingParams as SamplingParams
    from edge.client import EdgeClient as EdgeClient
    from edge.completion import CompletionRequest as CompletionRequest
    from edge.grpc_transport import Credentials as Credentials
    from edge.patience import Patience as Patience
    from edge.report import Completion as Completion
    from optimizer.plan import Partition as Partition
    from optimizer.plan import Plan as Plan

_HOMES: Final = {
    "SamplingParams": "decoding.params",
    "EdgeClient": "edge.client",
    "CompletionRequest": "edge.completion",
    "Patience": "edge.patience",
    "Credentials": "edge.grpc_transport",
    "Completion": "edge.report",
    "Partition": "optimizer.plan",
    "Plan": "optimizer.plan",
}

__all__ = [
    "Completion",
    "CompletionRequest",
    "Credentials",
    "EdgeClient",
    "Partition",
    "Patience",
    "Plan",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'splitpoint' has no attribute {name!r}")
