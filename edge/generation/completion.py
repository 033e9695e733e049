"""From a stream of tokens to a completion: text, stop rules, times, and a clean ending.

A `CompletionRun` is one answer under way. Iterate over it for its text pieces. It may end by a stop
rule, by length, by a lost server, or because the caller stops iterating; `completion` then says
how.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Final, NamedTuple, TextIO

from decoding.params import SamplingParams, shown, whole_in
from decoding.scores import TokenScore, TopToken
from edge.device.detokenizer import DecodedToken, TextStream
from edge.device.front import FrontEngine
from edge.draft.registry import AUTO as AUTO_DRAFT
from edge.errors import InputError, TooSlowError, TransportError
from edge.generation.context_terms import check_context_terms
from edge.generation.parts import CANNOT_MOVE, AnswerParts
from edge.generation.report import Completion
from edge.generation.stopping import FinishReason, StopRule
from edge.generation.token_source import NewToken, TokenSource
from edge.step_trace import StepTrace
from edge.text_input import check_text
from hwprofiles.sensors.energy import EnergyMeter
from optimizer.artifacts.prefill import PLANNED, PREFILL_PLACES
from optimizer.policy.retry import Clock

AUTO_LEVEL = "auto"
PREFERRED: Final = ("split", "cloud", "edge")
MOVE_WAYS: Final = ("auto", "kv", "ids")
# Each token is compared with every stop string, so their number and their length cost time.
MAX_STOPS: Final = 64
MAX_STOP_CHARS: Final = 1000
MAX_NEW_TOKENS: Final = (1 << 31) - 1
MAX_DEADLINE_S: Final = 86_400.0  # a day; the clocks of locks and sockets end not far above


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """What to generate, and how it may cross the link.

    max_new_tokens: the most tokens of the answer; None: as many as the plan leaves room for.
    sampling: how tokens are drawn. stop: texts that end the answer; they are not part of it.
    ignore_eos: go on after the model's own end (for measurements).
    level: a compression level's name or number, or "auto" for the plan's.
    deadline_tbt_s: the longest that a decode step should take, in seconds. With level "auto" the
    client then compresses harder when steps take longer, from the plan's level downwards. When
    nothing helps, the generation ends with `finish_reason` "deadline".
    context: a KV policy's name, what happens beyond the plan's tokens; see
    `optimizer.policy.kv.registry`. context_tokens: so many tokens stay cached at most where a
    policy lets some leave; None: as many as the plan's cache holds. draft: a drafter's name, see
    `edge.draft.registry`. prefill: where the prompt's rows for the cloud are computed
    (`optimizer.policy.prefill_place`). "plan": where the plan says. "cloud" sends ids, "both" as
    many as seem best by what was measured so far, "edge" none. At split 0 the server computes all
    rows where it can. prefer: "cloud" lets the server run every layer, whatever the plan's split;
    "edge" asks the device's own model (`EdgeClient`'s fallback) and no server; "split" keeps to the
    plan. split: where the front is cut into segments (`Plan.splits`), run at this one, or with 0
    layers here, as long as its cache holds; None: begin at the plan's and let the split move where
    the device runs short (`optimizer.policy.split_moves`). move_by: what the server gets when the
    split moves towards it: "kv" the keys and values of the moved layers, where it can take them;
    "ids" the tokens, which it computes again; "auto" what is quicker
    (`optimizer.policy.move_transport`). adapt: predict rows from the session's earlier ones, where
    tables and server can.
    Raises InputError for values that no generation can have.
    """

    max_new_tokens: int | None = 128
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    level: str = AUTO_LEVEL
    deadline_tbt_s: float | None = None
    context: str = "refuse"
    context_tokens: int | None = None
    draft: str = AUTO_DRAFT
    prefill: str = PLANNED
    prefer: str = "split"
    split: int | None = None
    move_by: str = "auto"
    adapt: bool = True

    def __post_init__(self) -> None:
        check_text(self.level, "level")
        check_text(self.draft, "draft")
        check_text(self.context, "context")
        check_context_terms(self.context, self.context_tokens)
        places = (PLANNED, *PREFILL_PLACES)
        if self.prefill not in places:
            raise InputError(f"prefill {shown(self.prefill)}: one of {', '.join(places)}")
        if self.prefer not in PREFERRED:
            raise InputError(f"prefer {shown(self.prefer)}: one of {', '.join(PREFERRED)}")
        if self.move_by not in MOVE_WAYS:
            raise InputError(f"move by {shown(self.move_by)}: one of {', '.join(MOVE_WAYS)}")
        if self.split is not None:
            _check_split(self.split)
            if self.prefer != "split":
                raise InputError(f"split {self.split} and prefer {self.prefer}: give one of them")
        if self.deadline_tbt_s is not None:
            _check_deadline(self.deadline_tbt_s)
        if self.max_new_tokens is not None:
            _check_max_new_tokens(self.max_new_tokens)
        _check_stops(self.stop)


def _check_deadline(deadline_s: float) -> None:
    is_number = isinstance(deadline_s, (int, float)) and not isinstance(deadline_s, bool)
    if not is_number or not deadline_s > 0:
        raise InputError(f"a deadline of {shown(deadline_s)} s: must be above 0")
    if deadline_s > MAX_DEADLINE_S:
        raise InputError(f"a deadline of {shown(deadline_s)} s: at most {MAX_DEADLINE_S:g}")


def _check_split(split: int) -> None:
    try:
        whole_in("the split", split, 0, MAX_NEW_TOKENS)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_max_new_tokens(count: int) -> None:
    try:
        whole_in("max new tokens", count, 1, MAX_NEW_TOKENS)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_stops(stops: Sequence[str]) -> None:
    if isinstance(stops, str):
        raise InputError("stop must be several strings, not one")
    if len(stops) > MAX_STOPS:
        raise InputError(f"{len(stops)} stop strings: at most {MAX_STOPS}")
    for stop in stops:
        check_text(stop, "a stop string")
        if not stop:
            raise InputError("a stop string must not be empty")
        if len(stop) > MAX_STOP_CHARS:
            raise InputError(f"a stop string of {len(stop)} characters: at most {MAX_STOP_CHARS}")


class TextPiece(NamedTuple):
    """One step of a streamed answer: a token and the text that can be shown because of it.

    text: without a stop string, and without what may become one. token: what the token itself adds
    to the text (or the name of a special token, which adds nothing), token_bytes: in bytes, which
    may be a part of a character. offset: characters that the tokens before it add. top_logprobs:
    the most likely tokens of its position, when asked for.
    """

    token_id: int
    logprob: float
    text: str
    token: str = ""
    token_bytes: bytes = b""
    offset: int = 0
    top_logprobs: tuple[TopToken, ...] = ()


class CompletionRun:
    """One answer under way. Iterating takes a front out of `fronts` and puts it back.

    generation_of: makes the generation that uses the front. trace: gets one JSON line a frame.
    tables: the codec tables' name, unless the generation chooses.
    on_finished: is told the completion; it must not raise. meter: of the energy that it takes.
    """

    def __init__(
        self,
        *,
        fronts: queue.SimpleQueue[FrontEngine],
        generation_of: Callable[[FrontEngine], TokenSource],
        prompt_ids: tuple[int, ...],
        hidden_size: int,
        text: TextStream,
        stop: StopRule,
        with_logprobs: bool,
        with_top_logprobs: bool = False,
        clock: Clock,
        trace: TextIO | None,
        tables: str = "",
        on_finished: Callable[[Completion], None] | None = None,
        meter: EnergyMeter | None = None,
    ) -> None:
        self._on_finished, self._meter = on_finished, meter
        self._fronts = fronts
        self._generation_of = generation_of
        self._prompt_ids = prompt_ids
        self._hidden_size = hidden_size
        self._text = text
        self._stop = stop
        self._with_logprobs = with_logprobs
        self._with_top = with_top_logprobs
        self._clock = clock
        self._trace = trace
        self._tables = tables
        self._steps: list[StepTrace] = []
        self._pieces: list[TextPiece] = []
        self._num_chars = 0
        self._prompt_scores: tuple[TokenScore | None, ...] = ()
        self._token_times_s: list[float] = []
        self._completion: Completion | None = None
        self._generation: TokenSource | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End the generation soon, whatever it waits for. Safe from any thread, at any time."""
        self._cancelled = True
        if self._generation is not None:
            self._generation.cancel()

    def move_to(self, split: int) -> None:
        """From the next token on run at this split, one of the plan's or 0 (`Plan.splits`).

        Safe from any thread once the answer has begun. InputError where its split cannot move.
        """
        if self._generation is None:
            raise InputError("the answer has not begun: its split cannot move yet")
        if not isinstance(self._generation, AnswerParts):
            raise InputError(CANNOT_MOVE)
        self._generation.move_to(split)

    @property
    def prompt_logprobs(self) -> tuple[TokenScore | None, ...]:
        """As in the completion, from the first piece on."""
        return self._prompt_scores

    @property
    def has_ended(self) -> bool:
        """Whether `completion` is there."""
        return self._completion is not None

    @property
    def completion(self) -> Completion:
        """The outcome, once the iteration has ended. Raises InputError before that."""
        if self._completion is None:
            raise InputError("the generation has not ended yet")
        return self._completion

    def steps_since(self, number: int) -> tuple[StepTrace, ...]:
        """The traces of answered frames from this one on, so far. Safe from any thread."""
        return tuple(self._steps[number:])

    def token_times_since(self, number: int) -> tuple[float, ...]:
        """Arrivals of tokens from this one on, so far, in seconds since the call. Likewise safe."""
        return tuple(self._token_times_s[number:])

    def __iter__(self) -> Iterator[TextPiece]:
        """Pieces as they come. A TransportError leaves here only if no token had come yet."""
        started_s = self._clock.now()
        front = self._fronts.get()  # with what the answer before has left in its cache
        try:
            generation = self._generation = self._generation_of(front)
            if self._meter is not None:
                self._meter.start()
        except BaseException:  # a front that is not put back is missing for good
            self._fronts.put(front)
            raise
        if self._cancelled:
            generation.cancel()
        reason: FinishReason = "cancelled"
        detail = ""
        try:
            with closing(generation.tokens(self._prompt_ids, self._record)) as tokens:
                for token in tokens:
                    self._token_times_s.append(token.at_s - started_s)
                    if token.prompt_scores and not self._prompt_scores:
                        self._prompt_scores = (None, *token.prompt_scores)
                    yield self._piece(token)
                    if self._stop.reason is not None:
                        reason = self._stop.reason
                        break
                else:  # the source has no room for more
                    reason = "cancelled" if self._cancelled else "length"
        except TransportError as error:
            if not self._pieces:
                raise
            reason, detail = "server_lost", str(error)
        except TooSlowError as error:
            reason, detail = "deadline", str(error)
        finally:
            self._fronts.put(front)
            self._finish(reason, detail, generation, self._clock.now() - started_s)

    def _piece(self, token: NewToken) -> TextPiece:
        tail = ""
        if self._stop.is_stop_token(token.token_id):
            # It adds nothing, whatever the tokenizer says. A character in pieces stays in pieces.
            tail = self._text.flush()
            added = DecodedToken("", self._text.push(token.token_id).token, b"")
        else:
            added = self._text.push(token.token_id)
            if self._stop.is_last(token.token_id):
                rest = self._text.flush()
                added = DecodedToken(added.text + rest, added.token + rest, added.data)
        piece = TextPiece(
            token_id=token.token_id,
            logprob=token.logprob,
            text=self._stop.push(token.token_id, tail + added.text),
            token=added.token,
            token_bytes=added.data,
            offset=self._num_chars,
            top_logprobs=token.top,
        )
        self._num_chars += len(added.text)
        self._pieces.append(piece)
        return piece

    def _record(self, step: StepTrace) -> None:
        self._steps.append(step)
        if self._trace is not None:
            self._trace.write(json.dumps(asdict(step)) + "\n")

    def _finish(
        self, reason: FinishReason, detail: str, generation: TokenSource, total_s: float
    ) -> None:
        text = "".join(piece.text for piece in self._pieces)
        if self._stop.reason is None:  # ended from outside: what waited has nothing to wait for
            text += self._stop.flush() + self._text.flush()
        parts = generation if isinstance(generation, AnswerParts) else None
        self._completion = Completion(
            text=text,
            token_ids=tuple(piece.token_id for piece in self._pieces),
            logprobs=(
                tuple(piece.logprob for piece in self._pieces) if self._with_logprobs else ()
            ),
            top_logprobs=(
                tuple(piece.top_logprobs for piece in self._pieces) if self._with_top else ()
            ),
            prompt_logprobs=self._prompt_scores,
            finish_reason=reason,
            finish_detail=detail or ("" if parts is None else parts.detail),
            num_prompt_tokens=len(self._prompt_ids),
            hidden_size=self._hidden_size,
            token_times_s=tuple(self._token_times_s),
            steps=tuple(self._steps),
            reconnects=generation.reconnects,
            shifts=0 if parts is None else parts.shifts,
            moves=0 if parts is None else parts.moves,
            total_s=total_s,
            tables=self._tables if parts is None else parts.tables or self._tables,
            tables_bytes={} if parts is None else parts.tables_bytes,
            energy=None if self._meter is None else self._meter.stop(),
        )
        if self._on_finished is not None:
            self._on_finished(self._completion)
