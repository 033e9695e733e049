"""Who gets a session: every check of an Open, and the reservation of its KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloud.back_engine import BackEngine
from cloud.errors import BadOpenError, CapacityError, DrainingError, MismatchError
from cloud.kv_pool import KvPool
from cloud.sessions import Session
from codec.ladder import Ladder
from optimizer.bundle import Bundle
from optimizer.plan import Plan
from protos.messages import Description, Open
from protos.wire import MAX_FRAME_TOKENS, MAX_MESSAGE_BYTES

# What a message holds beside the rows: ids of at most 5 bytes each, and headers.
_MESSAGE_OVERHEAD_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server grants. `max_sessions`: at once; `max_tokens`: to one of them."""

    max_sessions: int
    max_tokens: int


class Admission:
    """Grants sessions while there is room. Lives on the event loop's thread."""

    def __init__(
        self,
        plan: Plan,
        engine: BackEngine,
        pool: KvPool,
        *,
        limits: Limits,
        ladders: Mapping[int, Ladder] | None = None,
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._pool = pool
        self._limits = limits
        self._ladders = dict(ladders or {})
        self._lossless = Ladder.lossless(engine.hidden_size)
        self._num_sessions = 0
        self.draining = False

    @property
    def num_sessions(self) -> int:
        return self._num_sessions

    @property
    def max_frame_tokens(self) -> int:
        """Most rows of one frame: the wire's bound, or what fits a message uncompressed."""
        row_bytes = 4 * self._engine.hidden_size
        fitting = (MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES) // row_bytes
        return max(1, min(MAX_FRAME_TOKENS, fitting))

    def admit(self, request: Open) -> Session:
        """A session with its KV reserved; call `leave` once when it is over.

        Raises MismatchError, BadOpenError, CapacityError or DrainingError.
        """
        if self.draining:
            raise DrainingError("this server is shutting down")
        self._check_same_model(request)
        ladder = self._ladder(request)
        engine = self._engine
        if not engine.first_layer <= request.split < engine.num_layers:
            raise BadOpenError(
                f"split {request.split}: this server runs splits {engine.first_layer} to "
                f"{engine.num_layers - 1}"
            )
        if request.max_tokens > self._limits.max_tokens:
            raise BadOpenError(
                f"{request.max_tokens} tokens: a session may have {self._limits.max_tokens}"
            )
        if self._num_sessions >= self._limits.max_sessions:
            raise CapacityError(f"all {self._limits.max_sessions} sessions are taken")
        lease = self._pool.lease(split=request.split, max_tokens=request.max_tokens)
        self._num_sessions += 1
        return Session(
            request.session_id,
            lease=lease,
            ladder=ladder,
            sampling=request.sampling,
            vocab_size=self._plan.model.geometry.vocab_size,
            max_frame_tokens=self.max_frame_tokens,
        )

    def leave(self) -> None:
        """One admitted session is over."""
        self._num_sessions -= 1

    def describe(self) -> Description:
        model = self._plan.model
        return Description(
            model_id=model.id,
            model_sha256=model.sha256,
            first_layer=self._engine.first_layer,
            num_layers=self._engine.num_layers,
            hidden_size=self._engine.hidden_size,
            max_tokens=self._limits.max_tokens,
            active_sessions=self._num_sessions,
            kv_bytes_in_use=self._pool.used_bytes,
            kv_bytes_limit=self._pool.limit_bytes,
        )

    def _check_same_model(self, request: Open) -> None:
        served = self._plan.model
        if request.model_sha256 != served.sha256:
            raise MismatchError(
                f"the edge holds model {request.model_sha256}, this server serves "
                f"{served.sha256} ({served.id})"
            )
        if request.hidden_size != self._engine.hidden_size:
            raise BadOpenError(
                f"hidden size {request.hidden_size}, the model's is {self._engine.hidden_size}"
            )

    def _ladder(self, request: Open) -> Ladder:
        """The split's calibrated ladder, or the lossless one, by the digest the edge names."""
        calibrated = self._ladders.get(request.split, self._lossless)
        for ladder in (calibrated, self._lossless):
            if request.codec_tables_sha256 == ladder.tables_sha256:
                return ladder
        raise MismatchError(
            f"the edge's codec tables are {request.codec_tables_sha256}, this server's for split "
            f"{request.split} are {calibrated.tables_sha256}"
        )


def load_ladders(bundle: Bundle) -> dict[int, Ladder]:
    """The calibrated ladders of a bundle by split; `codec/split-N.tables`. Raises TablesError."""
    hidden_size = bundle.plan.model.geometry.hidden_size
    return {
        int(path.stem.removeprefix("split-")): Ladder.load(path, hidden_size=hidden_size)
        for path in map(Path, sorted(bundle.codec_dir.glob("split-*.tables")))
    }
