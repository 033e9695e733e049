"""Splitpoint: one large language model across an edge device and a cloud server.

The public Python API. Names load on first use, so `import splitpoint` stays light:

    from splitpoint import CompletionRequest, EdgeClient, SamplingParams

    with EdgeClient("bundle", server="127.0.0.1:50051") as client:
        answer = client.complete("The capital of France is", CompletionRequest(max_new_tokens=16))
        print(answer.text)

- `EdgeClient`: one device with one bundle. `AsyncEdgeClient`: the same for asyncio.
  `Credentials`, `RetryPolicy`: how it reaches a server.
- `CompletionRequest`, `SamplingParams`: what to generate. `ChatMessage`: a conversation's turn.
- `CompletionRun`, `TextPiece`: an answer while it comes. `Completion`, `StepTrace`: what it cost.
- `Plan`, `Partition`: what a bundle was built for.
- `EdgeError`: the root of all errors that the client raises on purpose.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from hwprofiles.telemetry import turn_off_telemetry

if TYPE_CHECKING:
    from decoding.params import SamplingParams as SamplingParams
    from edge.async_client import AsyncEdgeClient as AsyncEdgeClient
    from edge.client import EdgeClient as EdgeClient
    from edge.device.tokenizer import ChatMessage as ChatMessage
    from edge.errors import EdgeError as EdgeError
    from edge.generation.completion import CompletionRequest as CompletionRequest
    from edge.generation.completion import CompletionRun as CompletionRun
    from edge.generation.completion import TextPiece as TextPiece
    from edge.generation.report import Completion as Completion
    from edge.net.credentials import Credentials as Credentials
    from edge.step_trace import StepTrace as StepTrace
    from optimizer.artifacts.plan import Partition as Partition
    from optimizer.artifacts.plan import Plan as Plan
    from optimizer.policy.retry import RetryPolicy as RetryPolicy

_HOMES: Final = {
    "SamplingParams": "decoding.params",
    "AsyncEdgeClient": "edge.async_client",
    "EdgeClient": "edge.client",
    "ChatMessage": "edge.device.tokenizer",
    "EdgeError": "edge.errors",
    "CompletionRequest": "edge.generation.completion",
    "CompletionRun": "edge.generation.completion",
    "TextPiece": "edge.generation.completion",
    "Completion": "edge.generation.report",
    "Credentials": "edge.net.credentials",
    "StepTrace": "edge.step_trace",
    "Partition": "optimizer.artifacts.plan",
    "Plan": "optimizer.artifacts.plan",
    "RetryPolicy": "optimizer.policy.retry",
}

__all__ = [
    "AsyncEdgeClient",
    "ChatMessage",
    "Completion",
    "CompletionRequest",
    "CompletionRun",
    "Credentials",
    "EdgeClient",
    "EdgeError",
    "Partition",
    "Plan",
    "RetryPolicy",
    "SamplingParams",
    "StepTrace",
    "TextPiece",
]


turn_off_telemetry()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'splitpoint' has no attribute {name!r}")
