"""The parts of a server without a model: a small plan, a small pool, and a model thread by hand."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from cloud.engine.loop_commands import ActiveSession, Release
from cloud.kv.pool import KvPool, KvShape
from cloud.kv.prefix_cache import PrefixCache
from cloud.sessions.admission import Admission, Granted
from cloud.sessions.grammars import Grammars
from cloud.sessions.held_session import HeldSession
from cloud.sessions.lifecycle import Lifecycle
from cloud.sessions.model_sessions import ModelSessions
from cloud.sessions.resumable_sessions import ResumableSessions
from cloud.sessions.served_model import ServedModel
from cloud.sessions.served_models import ServedModels
from cloud.sessions.session_limits import SessionLimits
from cloud.sessions.siblings import Siblings
from codec.ladder import Ladder
from decoding.params import SamplingParams
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from protos.messages import Frame, Open

WIDTH, LAYERS = 8, 2
SHA = "cd" * 32
SHAPE = KvShape(num_layers=LAYERS, num_kv_heads=1, head_dim=2)
# One session of 16 tokens that enters at layer 0: one block of each layer.
SESSION_BYTES = LAYERS * SHAPE.block_bytes


def open_request(session_id: str = "s", **changes: Any) -> Open:
    request = Open(
        session_id=session_id,
        model_sha256=SHA,
        split=0,
        hidden_size=WIDTH,
        codec_tables_sha256=Ladder.lossless(WIDTH).tables_sha256,
        max_tokens=16,
        sampling=SamplingParams(),
    )
    return replace(request, **changes)


def small_plan() -> Plan:
    geometry = ModelGeometry(
        architecture="LlamaForCausalLM",
        num_layers=LAYERS,
        hidden_size=WIDTH,
        num_heads=4,
        num_kv_heads=1,
        head_dim=2,
        intermediate_size=16,
        vocab_size=32,
        context_length=256,
        tied_embeddings=True,
    )
    return Plan(
        model=ModelRef(id="small", sha256=SHA, geometry=geometry),
        partition=Partition(split=1, front_bits=32, back_bits=32),
        back_start=0,
        kv_bits=32,
        level="lossless",
        max_tokens=64,
        prefill_chunk=16,
    )


class ModelThreadByHand:
    """Frees nothing until the test says so."""

    def __init__(self) -> None:
        self.submitted: list[Frame] = []
        self.releases: list[Release] = []
        self.closing: list[tuple[ActiveSession, Future[None]]] = []

    def submit(self, active: ActiveSession, frame: Frame, release: Release) -> None:
        self.submitted.append(frame)
        self.releases.append(release)

    def close(self, active: ActiveSession) -> Future[None]:
        freed: Future[None] = Future()
        self.closing.append((active, freed))
        return freed

    def free_all(self) -> None:
        while self.closing:
            active, freed = self.closing.pop(0)
            active.session.close()
            freed.set_result(None)


class Parts:
    """An admission and what it works with; `num_bytes` of KV cache. others: further models."""

    def __init__(
        self,
        *,
        num_bytes: int = 4 * SESSION_BYTES,
        siblings: Siblings | None = None,
        others: Sequence[ModelSessions] = (),
        **limits: Any,
    ) -> None:
        self.lifecycle = Lifecycle()
        self.resumable = ResumableSessions(self.lifecycle)
        self.model_thread = ModelThreadByHand()
        self.prefixes = prefixes = PrefixCache()
        self.pool = KvPool(SHAPE, limit_bytes=num_bytes, reclaim=prefixes.drop_oldest)
        self.served = ServedModel(
            small_plan(), layers=range(LAYERS), hidden_size=WIDTH, max_tokens=64
        )
        self.sessions = ModelSessions(
            self.served, self.pool, prefixes=prefixes, grammars=Grammars(None, vocab_size=32)
        )
        self.models = ServedModels([self.sessions, *others])
        self.admission = Admission(
            self.models,
            lifecycle=self.lifecycle,
            resumable=self.resumable,
            limits=SessionLimits(**{"max_sessions": 8, "max_wait_s": 30.0, **limits}),
            siblings=siblings,
        )

    def hold(self, granted: Granted, request: Open) -> HeldSession:
        return HeldSession(
            granted.life,
            ActiveSession(granted.session, lambda _: None),
            request,
            lifecycle=self.lifecycle,
            engine_loop=self.model_thread,
            on_freed=self.admission.serve_queue,
        )
