"""What one server serves, and whether an Open asks for something that it can serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloud.engine.frame_work import TokenRows
from cloud.errors import BadOpenError, MismatchError
from codec.ladder import Ladder
from optimizer.artifacts.bundle import Bundle, tables_name
from optimizer.artifacts.plan import Plan
from protos.messages import Description, Open
from protos.wire import MAX_FRAME_TOKENS, MAX_MESSAGE_BYTES, MAX_PROBE_BYTES

# What a message holds beside the rows: ids of at most 5 bytes each, and headers.
_MESSAGE_OVERHEAD_BYTES: Final = 64 << 10
_FLOAT32_BYTES: Final = 4


class ServedModel:
    """The model of a bundle as one server serves it."""

    def __init__(
        self,
        plan: Plan,
        *,
        layers: range,
        hidden_size: int,
        max_tokens: int,
        ladders: Mapping[int, Ladder] | None = None,
        embedding: TokenRows | None = None,
        max_positions: int | None = None,
    ) -> None:
        """layers: those that the server holds; a session may enter at each of them. max_tokens:
        most tokens of one session. ladders: the calibrated ladder of each split that has one.
        embedding: makes rows from token ids; None: this server takes no token frames.
        max_positions: most tokens of a session at split 0 that comes as ids: no device's cache
        limits it. None: max_tokens."""
        self.max_tokens = max_tokens
        self.embedding = embedding
        self._max_positions = max_positions or max_tokens
        self._capacities = {split: plan.capacity(split) for split in plan.front_splits}
        self.vocab_size = plan.model.geometry.vocab_size
        self._model = plan.model
        self._layers = layers
        self.hidden_size = hidden_size
        self._ladders = dict(ladders or {})
        self._lossless = Ladder.lossless(hidden_size)

    @property
    def max_frame_tokens(self) -> int:
        """Most rows of one frame: the wire's bound, or what fits a message uncompressed."""
        row_bytes = _FLOAT32_BYTES * self.hidden_size
        fitting = (MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES) // row_bytes
        return max(1, min(MAX_FRAME_TOKENS, fitting))

    def max_hidden_bytes(self, num_rows: int) -> int:
        """Most bytes that a frame of so many rows may take: twice what they are uncompressed."""
        return 2 * _FLOAT32_BYTES * self.hidden_size * num_rows + _MESSAGE_OVERHEAD_BYTES

    @property
    def max_message_bytes(self) -> int:
        """Most bytes of an honest message to this server, a link probe's among them."""
        frame = self.max_hidden_bytes(self.max_frame_tokens) + _MESSAGE_OVERHEAD_BYTES
        return min(MAX_MESSAGE_BYTES, max(frame, MAX_PROBE_BYTES + _MESSAGE_OVERHEAD_BYTES))

    def num_layers_from(self, split: int) -> int:
        """How many layers run for a session that enters at `split`."""
        return self._layers.stop - split

    def check(self, request: Open) -> None:
        """Raise MismatchError or BadOpenError where no session here can be what is asked for."""
        if request.model_sha256 != self._model.sha256:
            raise MismatchError(
                f"the edge holds model {request.model_sha256}, this server serves "
                f"{self._model.sha256} ({self._model.id})"
            )
        if request.hidden_size != self.hidden_size:
            raise BadOpenError(
                f"hidden size {request.hidden_size}, the model's is {self.hidden_size}"
            )
        self.ladder(request)
        if request.split not in self._layers:
            raise BadOpenError(
                f"split {request.split}: this server runs splits {self._layers.start} to "
                f"{self._layers.stop - 1}"
            )
        _check_sampling(request, self.vocab_size)
        most = self._most_tokens(request)
        if request.max_tokens > most:
            raise BadOpenError(f"{request.max_tokens} tokens: a session may have {most}")

    def _most_tokens(self, request: Open) -> int:
        """Most tokens of a session. Where the plan's split moves, a device with fewer layers has
        room for more; without any it has no cache at all."""
        if request.split == 0 and request.token_rows > 0 and self.embedding is not None:
            return self._max_positions
        capacity = min(self._capacities.get(request.split, 0), self._max_positions)
        return max(self.max_tokens, capacity)

    def ladder_at(self, split: int) -> Ladder:
        """The calibrated ladder of this split; the lossless one where it has none."""
        return self._ladders.get(split, self._lossless)

    def ladder(self, request: Open) -> Ladder:
        """The split's calibrated ladder or the lossless one, by the digest that the edge names.

        Raises MismatchError where it names neither.
        """
        calibrated = self.ladder_at(request.split)
        for ladder in (calibrated, self._lossless):
            if request.codec_tables_sha256 == ladder.tables_sha256:
                return ladder
        raise MismatchError(
            f"the edge's codec tables are {request.codec_tables_sha256}, this server's for split "
            f"{request.split} are {calibrated.tables_sha256}"
        )

    def describe(
        self, *, active_sessions: int, kv_bytes_in_use: int, kv_bytes_limit: int
    ) -> Description:
        """What the server serves, with how full it is."""
        return Description(
            model_id=self._model.id,
            model_sha256=self._model.sha256,
            first_layer=self._layers.start,
            num_layers=self._layers.stop,
            hidden_size=self.hidden_size,
            max_tokens=self.max_tokens,
            active_sessions=active_sessions,
            kv_bytes_in_use=kv_bytes_in_use,
            kv_bytes_limit=kv_bytes_limit,
        )


def _check_sampling(request: Open, vocab_size: int) -> None:
    """Raise BadOpenError for token ids beyond the vocabulary, and for a prompt that cannot be."""
    for token_id in (*request.sampling.logit_bias, *request.end_token_ids):
        if token_id >= vocab_size:
            raise BadOpenError(f"token {token_id}: the vocabulary has {vocab_size}")
    if request.prompt_tokens > request.max_tokens:
        raise BadOpenError(
            f"a prompt of {request.prompt_tokens} tokens in a session of {request.max_tokens}"
        )


def load_ladders(bundle: Bundle) -> dict[int, Ladder]:
    """The calibrated ladders of a bundle by split; `codec/split-N.tables`. Raises TablesError."""
    geometry = bundle.plan.model.geometry
    names = {split: tables_name(split) for split in range(geometry.num_layers + 1)}
    return {
        split: Ladder.load(bundle.path(name), hidden_size=geometry.hidden_size)
        for split, name in names.items()
        if bundle.has(name)
    }
