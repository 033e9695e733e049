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
    from edge.generation.completion import CompletionRequest as CompletionRequest
    from edge.generation.report import Completion as Completion
    from edge.net.grpc_transport import Credentials as Credentials
    from optimizer.artifacts.plan import Partition as Partition
    from optimizer.artifacts.plan import Plan as Plan
    from optimizer.policy.retry import RetryPolicy as RetryPolicy

_HOMES: Final = {
    "SamplingParams": "decoding.params",
    "EdgeClient": "edge.client",
    "CompletionRequest": "edge.generation.completion",
    "RetryPolicy": "optimizer.policy.retry",
    "Credentials": "edge.net.grpc_transport",
    "Completion": "edge.generation.report",
    "Partition": "optimizer.artifacts.plan",
    "Plan": "optimizer.artifacts.plan",
}

__all__ = [
    "Completion",
    "CompletionRequest",
    "Credentials",
    "EdgeClient",
    "Partition",
    "Plan",
    "RetryPolicy",
    "SamplingParams",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'splitpoint' has no attribute {name!r}")
