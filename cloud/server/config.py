"""How to serve one bundle: the settings of a server, and two of them read from text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from cloud.errors import StartError
from cloud.server.access import Access
from cloud.server.byte_budget import DEFAULT_TOTAL_BYTES
from optimizer.policy.batching import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How to serve one bundle. Sizes in bytes, times in seconds; None: chosen from the machine.

    drain_s: how long running sessions may go on after SIGTERM; then they are handed back.
    idle_ttl_s: how long a client may be silent before its session is evicted. max_resume_s: how
    long the session of a broken stream is kept at most. max_waiting: sessions in the queue for a
    place. max_wait_s: how long each of them may wait. frame_memory_bytes: most bytes of frames
    that have come and not run yet. max_stall_s: how long a client may leave an answer unread, and
    a frame may wait for memory. max_step_s: how long one step of the model may take before the
    server counts as failed. verify: hash all weights that lie outside the bundle.
    metrics_port: where GET /metrics is answered (None: nowhere). status_port: where the status page
    is (None: nowhere).
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 50051
    max_sessions: int = 64
    kv_memory_bytes: int | None = None
    device: str = "auto"
    threads: int | None = None
    access: Access = field(default_factory=Access)
    scheduler: Scheduler = field(default_factory=Scheduler)
    idle_ttl_s: float = 300.0
    max_resume_s: float = 60.0
    max_waiting: int = 16
    max_wait_s: float = 2.0
    drain_s: float = 30.0
    frame_memory_bytes: int = DEFAULT_TOTAL_BYTES
    max_stall_s: float = 30.0
    max_step_s: float = 300.0
    verify: bool = False
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    status_host: str = "127.0.0.1"
    status_port: int | None = None


def choose_device(wanted: str) -> str:
    """The torch device for `auto`, `cpu` or `cuda`; `auto` takes CUDA where torch has it.

    Raises StartError for a device that is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StartError("--device cuda: torch finds no CUDA device here")
    if wanted not in ("cpu", "cuda"):
        raise StartError(f"--device {wanted}: choose auto, cpu or cuda")
    return wanted
