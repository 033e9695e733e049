"""What one server serves, and whether an Open asks for something that it can serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cloud.engine.frame_work import TokenRows
from cloud.errors import BadOpenError, MismatchError
from codec.ladder import Ladder
from optimizer.artifacts.bundle import DEFAULT_TABLES, Bundle
from optimizer.artifacts.plan import Plan
from protos.limits import TABLES_REFUSED
from protos.messages import Open
from protos.wire import MAX_FRAME_TOKENS, MAX_MESSAGE_BYTES, MAX_PROBE_BYTES

# What a message holds beside the rows: ids of at most 5 bytes each, and headers.
_MESSAGE_OVERHEAD_BYTES: Final = 64 << 10
_FLOAT32_BYTES: Final = 4


class ServedModel:
    """The model of a bundle, or of several, as one server serves it."""

    def __init__(
        self,
        plan: Plan,
        *,
        layers: range,
        hidden_size: int,
        max_tokens: int,
        ladders: Mapping[int, Mapping[str, Ladder]] | None = None,
        embedding: TokenRows | None = None,
        max_positions: int | None = None,
        others: Sequence[Plan] = (),
        leaving_positions: int = 0,
    ) -> None:
        """layers: those that the server holds; a session may enter at each of them. max_tokens:
        most tokens of one session. ladders: the calibrated ladders of each split that has some, by
        the name of their tables. embedding: makes rows from token ids; None: this server takes no
        token frames.
        max_positions: most tokens of a session at split 0 that comes as ids: no device's cache
        limits it. None: max_tokens. others: the plans of further bundles of this model.
        leaving_positions: how far positions reach where tokens leave a session's cache; 0: the
        engine cannot let them."""
        self.leaving_positions = leaving_positions
        self.max_tokens = max_tokens
        self.embedding = embedding
        self._max_positions = max_positions or max_tokens
        self._capacities: dict[int, int] = {}
        for one in (plan, *others):
            for split in one.front_splits:
                most = max(one.capacity(split), self._capacities.get(split, 0))
                self._capacities[split] = most
        self.vocab_size = plan.model.geometry.vocab_size
        self._model = plan.model
        self._layers = layers
        self.hidden_size = hidden_size
        self._ladders = {split: dict(named) for split, named in (ladders or {}).items()}
        self._lossless = Ladder.lossless(hidden_size)

    @property
    def model_id(self) -> str:
        """The model's name, for people."""
        return self._model.id

    @property
    def model_sha256(self) -> str:
        """The hash that an Open names."""
        return self._model.sha256

    @property
    def layers(self) -> range:
        """The layers that the server holds."""
        return self._layers

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
        """The first calibrated ladder of this split; the lossless one where it has none."""
        return next(iter(self._ladders.get(split, {}).values()), self._lossless)

    def ladder(self, request: Open) -> Ladder:
        """A calibrated ladder of the split or the lossless one, by the digest that the edge names.

        Raises MismatchError where it names none of them.
        """
        calibrated = self._ladders.get(request.split, {DEFAULT_TABLES: self._lossless})
        for ladder in (*calibrated.values(), self._lossless):
            if request.codec_tables_sha256 == ladder.tables_sha256:
                return ladder
        held = ", ".join(
            f"{name} {ladder.tables_sha256[:12]}" for name, ladder in calibrated.items()
        )
        raise MismatchError(
            f"{TABLES_REFUSED} {request.codec_tables_sha256}, which this server does not hold: "
            "fetch its bundle (splitpoint pull), or copy yours to it; for split "
            f"{request.split} it has {held}"
        )


def _check_sampling(request: Open, vocab_size: int) -> None:
    """Raise BadOpenError for token ids beyond the vocabulary, and for a prompt that cannot be."""
    for token_id in (*request.sampling.logit_bias, *request.end_token_ids):
        if token_id >= vocab_size:
            raise BadOpenError(f"token {token_id}: the vocabulary has {vocab_size}")
    if request.prompt_tokens > max(request.max_tokens, request.max_positions):
        raise BadOpenError(
            f"a prompt of {request.prompt_tokens} tokens in a session of {request.max_tokens}"
        )


def load_ladders(bundle: Bundle) -> dict[int, Ladder]:
    """The ladders of a bundle's default tables, by split. Raises TablesError and BundleError."""
    return _loaded(bundle, bundle.codec_tables()[DEFAULT_TABLES])


def named_ladders(bundles: Sequence[Bundle]) -> dict[int, dict[str, Ladder]]:
    """The ladders of all tables of one model's bundles, by split and name.

    Tables that two bundles have alike are there once. Others of the same name get a part of their
    hash behind it. Raises as `load_ladders`.
    """
    found: dict[int, dict[str, Ladder]] = {}
    for bundle in bundles:
        for name, paths in bundle.codec_tables().items():
            for split, ladder in _loaded(bundle, paths).items():
                known = found.setdefault(split, {})
                sha256 = ladder.tables_sha256
                if all(sha256 != other.tables_sha256 for other in known.values()):
                    known[f"{name} ({sha256[:8]})" if name in known else name] = ladder
    return found


def _loaded(bundle: Bundle, paths: Mapping[int, Path]) -> dict[int, Ladder]:
    geometry = bundle.plan.model.geometry
    return {
        split: Ladder.load(path, hidden_size=geometry.hidden_size)
        for split, path in paths.items()
        if split <= geometry.num_layers
    }
