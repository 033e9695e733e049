"""One session's rules: a state machine without I/O, threads or tensors' insides.

`begin` checks a frame, its rows run in one or more batches, and `finish` makes its logits a result.
The session remembers results by sequence number. So a frame that comes again is answered again and
never applied twice. A sequence number that skips one is an error, and so is a frame whose rows
would leave a hole in the cache.

A token frame brings ids without rows. Its rows are the embedding's, and they run through the layers
below the split as well. Keys and values of those layers are kept while the prompt comes so, and
freed with the first rows or the first token.

An edge may send a frame ahead of the answer before it, on a guess of that answer's last token.
Where the guess was wrong, the frame is answered without tokens and nothing runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from cloud.drafting.session_drafts import RanRows, SessionDrafts
from cloud.engine.batch_entry import FloatRows
from cloud.engine.drawing import Drawing, device_draws
from cloud.engine.frame_decoding import Decoded, RowDecoder
from cloud.engine.frame_work import FrameWork, TokenRows
from cloud.engine.launches import Answered
from cloud.errors import BadFrameError
from cloud.kv.pool import KvLease
from cloud.kv.prefix_cache import Beginning, Keep
from cloud.sessions.choosing import chosen_tokens, is_finite
from cloud.sessions.frame_checks import check_frame, first_drawn, guess_was_right
from cloud.sessions.frame_rows import FrameRows
from cloud.sessions.grammars import Constrain
from cloud.sessions.leaving import LeavingTokens, at_positions
from cloud.sessions.moved_kv import MovedKv
from cloud.sessions.prompt_scores import scores_of
from cloud.sessions.remembered_answers import RememberedAnswers
from cloud.squeezed.fixed_context import FixedContext
from codec.kv.frame import KvFrames
from codec.ladder import Ladder
from decoding.params import SamplingParams
from decoding.sampler import Sampled
from decoding.scores import TopToken
from protos.messages import Frame, Result, Timings
from protos.prefix import extend_chain


class ServerSession:
    """See the module's docstring. Owns its KV lease; `close` frees it."""

    def __init__(
        self,
        session_id: str,
        *,
        lease: KvLease,
        ladder: Ladder,
        sampling: SamplingParams,
        vocab_size: int,
        max_frame_tokens: int,
        prompt_tokens: int = 0,
        constrain: Constrain | None = None,
        beginning: Beginning | None = None,
        keep: Keep | None = None,
        embedding: TokenRows | None = None,
        below: KvLease | None = None,
        drafts: SessionDrafts | None = None,
        moved: MovedKv | None = None,
        context: FixedContext | None = None,
        leaving: LeavingTokens | None = None,
        rows: FrameRows | None = None,
    ) -> None:
        """prompt_tokens: how many of the first tokens are no answer. constrain: gives the masks of
        the session's grammar. beginning: frames that ran in another session; `lease` must share its
        blocks. keep: told of each further beginning that other sessions may share. embedding: makes
        the rows of token frames; None: there are none. below: where keys and values of the layers
        below the split go meanwhile; None at split 0. moved: the tokens that it begins with, of an
        older session. drafts: what a drafter keeps of it; None: none does. context: whose
        keys its rows select from; None: they read all. leaving: whether tokens may leave its cache;
        None: none may. rows: decodes its frames and may hold their rows; None: holds none."""
        self.session_id = session_id
        self.lease = lease
        self.tokens: list[int] = []  # input tokens of the positions in the cache
        self._rows = rows or FrameRows(ladder)
        self._sampling = sampling
        self._leaving = leaving or LeavingTokens()
        self._drawn_with = self._leaving.drawing_params(sampling)
        self._prompt_tokens = prompt_tokens  # of those in the cache, and those to come
        self._constrain = constrain
        self._prompt_scores = scores_of(sampling, prompt_tokens, reports=self._leaving.reports)
        self._vocab_size = vocab_size
        self._max_frame_tokens = max_frame_tokens
        self._embedding = embedding
        self._below = below
        self.drafts = drafts
        self._context = context
        self._moved = moved  # until the last of its frames has come
        self._owns_lease = True
        self._next_sequence = 0
        self._num_begun = 0  # first frames that ran in other sessions: there is no answer to them
        self._keep = keep
        self._chain: bytes | None = None  # of the frames so far, while they are a plain prompt
        if beginning is not None:
            self._next_sequence = self._num_begun = beginning.num_frames
            self._chain = beginning.chain
            self.tokens.extend(beginning.tokens)
        self._answers = RememberedAnswers()
        self._last_token: int | None = None  # what the last answer ended with

    @property
    def num_frames(self) -> int:
        """Frames that it has begun: the next one has this sequence number."""
        return self._next_sequence

    def begin_chain(self, chain: bytes) -> None:
        """Name the beginning of this session, so that others can share it (`protos.prefix`)."""
        if self._chain is None:
            self._chain = chain

    def decoder_of(self, frame: Frame) -> RowDecoder | None:
        """What decodes the frame's rows ahead of `begin`, on any thread. Any thread may ask.

        None: it is not the next frame, brings no rows, or breaks a limit of the session.
        """
        moved = self._moved if frame.kv else None
        if (frame.is_tokens and moved is None) or frame.sequence != self._next_sequence:
            return None
        try:
            self._check(frame, range(self.lease.max_tokens))
        except BadFrameError:
            return None
        return self._rows.decoder(frame) if moved is None else moved.decoder_of(frame)

    def begin(self, frame: Frame, decoded: Decoded | None = None) -> FrameWork | Result:
        """Check the next frame, roll the cache back to where it starts, and decode its rows.

        decoded: what its `decoder_of` came to, if it was called. Returns the remembered result of a
        repeated frame, and an empty result for a frame that was sent ahead on a wrong guess. Raises
        BadFrameError.
        """
        if frame.sequence < self._next_sequence:
            return self._answers.again(frame, num_begun=self._num_begun)
        if frame.sequence > self._next_sequence:
            raise BadFrameError(
                f"frame {frame.sequence} came, frame {self._next_sequence} is missing"
            )
        if frame.ahead and not guess_was_right(frame, self.lease.length, self._last_token):
            self._next_sequence += 1
            self._chain = None  # a chain counts frames, and none names this one
            result = Result(sequence=frame.sequence, token_ids=(), num_tokens=self.lease.length)
            self._answers.keep(frame, result)
            return result
        if frame.kept:
            gone = self._leaving.apply(frame, self.lease, self.tokens)
            self._prompt_tokens -= sum(place < self._prompt_tokens for place in gone)
        floor = max(self.lease.num_frozen, self._leaving.floor)
        self._check(frame, range(floor, self.lease.length))
        self._leaving.check_reach(frame, self.lease)
        if frame.kv or self._moved is not None:
            return self._take_kv(frame, decoded)
        if frame.is_tokens:
            rows = self._embed(frame)
            self._rows.skip(frame)
        else:
            rows = self._rows.take(frame, decoded)
            self._free_below()
        if self._prompt_scores is not None:
            self._prompt_scores.begin(at_positions(frame, self.lease))
        self._next_sequence += 1
        if self._chain is not None:
            goes_on = frame.first_position == len(self.tokens) and not frame.want_token
            self._chain = extend_chain(self._chain, frame) if goes_on else None
        self.lease.rollback(frame.first_position)
        del self.tokens[frame.first_position :]
        self.tokens.extend(frame.token_ids)
        work = FrameWork(
            frame=frame,
            rows=rows,
            num_logits=frame.num_drafts + 1 if frame.want_token else 0,
            below=self._below,
            tap=None if self.drafts is None else self.drafts.tap,
            context=self._context,
        )
        if self.drafts is not None:
            self.drafts.begin(frame.first_position, is_ahead=frame.ahead)
        if frame.want_token and self._prompt_scores is None and device_draws(self._drawn_with):
            work.drawing = Drawing(params=self._sampling, position=first_drawn(frame))
        if self._constrain is not None and frame.want_token:
            first = first_drawn(frame)
            answer = self.tokens[self._prompt_tokens : first]
            work.masks = self._constrain(answer, self.tokens[first:])
        if self._prompt_scores is not None:
            placed = at_positions(frame, self.lease)
            work.num_watched = self._prompt_scores.num_watched(placed)
            work.watch = partial(self._prompt_scores.take, placed)
        return work

    def finish(
        self,
        work: FrameWork,
        answer: Answered,
        timings: Timings,
        elapsed_s: Callable[[], float] = lambda: 0.0,
    ) -> Result:
        """The result of a frame whose rows have all run. answer: float32 [num_logits, V], or the
        tokens that a device drew with `work.drawing`.

        elapsed_s: seconds since the call; asked once the tokens are drawn, for
        `timings.sample_s`. Verifies drafts; the rows of refused ones leave the cache. Raises
        BadFrameError where the rows, finite as they were, drove the model out of float32's range:
        also where they ask for no token, so that no other session comes to share them.
        """
        frame = work.frame
        tokens: tuple[int, ...] = ()
        chosen: list[Sampled] = []
        logprobs: tuple[float, ...] = ()
        top: tuple[tuple[TopToken, ...], ...] = ()
        self._last_token = None
        if self.lease.overflowed or not is_finite(answer):
            raise BadFrameError(f"frame {frame.sequence}: its rows overflow the model")
        if frame.want_token:
            # Logits row 0 belongs to the last token that is not a guess.
            first = first_drawn(frame)
            chosen = chosen_tokens(
                work,
                answer,
                self._drawn_with,
                position=first + self.lease.num_left,
                seen=self.tokens[:first],
                num_prompt=self._prompt_tokens,
            )
            tokens = tuple(token.token_id for token in chosen)
            if self._sampling.logprobs:
                logprobs = tuple(token.logprob for token in chosen)
                top = tuple(token.top for token in chosen)
            self._last_token = tokens[-1]
            keep = first + len(tokens) - 1
            self.lease.rollback(keep)
            del self.tokens[keep:]
            self._free_below()
        if self.drafts is not None:
            kept = frame.token_ids[: self.lease.length - frame.first_position]
            row = None if frame.is_tokens or not kept else work.rows[len(kept) - 1]
            self.drafts.ran(RanRows(frame.first_position, kept, self._last_token, row))
        result = Result(
            sequence=frame.sequence,
            token_ids=tokens,
            logprobs=logprobs,
            num_tokens=self.lease.length,
            timings=replace(timings, sample_s=elapsed_s()),
            top=top if self._sampling.top_logprobs else (),
        )
        if self._prompt_scores is not None:
            result = self._prompt_scores.filled(result, at_positions(frame, self.lease))
        result = self._leaving.reported(result, chosen)
        self._answers.keep(frame, result)
        if self._keep is not None and self._chain is not None:
            tokens = tuple(self.tokens)
            rows = self._rows.beginning(len(tokens))
            self._keep(tokens, self._next_sequence, self._chain, rows)
        return result

    def close(self) -> None:
        """Free its blocks; doing it again does nothing."""
        self._free_below()
        self._rows.close()
        if self.drafts is not None:
            self.drafts.close()
        if self._moved is not None:
            self._moved.close()
        if self._owns_lease:
            self.lease.close()

    @property
    def is_moving(self) -> bool:
        """Whether keys and values of its first tokens are still to come."""
        return self._moved is not None

    def hand_over(self, num_tokens: int, frames: KvFrames) -> MovedKv | None:
        """Give its blocks to a session that begins with its first tokens; None: it has not so many.
        The model thread must have let go of it."""
        lost = self.is_moving or self.lease.num_left or self.lease.overflowed
        ready = not lost and self._owns_lease
        if not ready or not 0 < num_tokens <= min(self.lease.length, len(self.tokens)):
            return None
        self._owns_lease = False
        return MovedKv(self.lease, tuple(self.tokens[:num_tokens]), frames)

    def _take_kv(self, frame: Frame, decoded: Decoded | None) -> Result:
        """Keys and values of the session's first tokens. Raises BadFrameError for another frame."""
        moved = self._moved
        if moved is None:
            raise BadFrameError(f"frame {frame.sequence} brings keys and values nobody asked for")
        moved.take(frame, self.lease, decoded)
        self._rows.skip(frame)
        self.tokens.extend(frame.token_ids)
        self._next_sequence += 1
        if self.lease.length == moved.num_tokens:
            moved.close()
            self._moved = None
        result = Result(sequence=frame.sequence, token_ids=(), num_tokens=self.lease.length)
        self._answers.keep(replace(frame, kv=b""), result)  # a journal repeats the ids alone
        return result

    @property
    def recalls(self) -> bool:
        """Whether frames may refer to earlier rows."""
        return self._rows.are_held

    @property
    def token_rows(self) -> int:
        """How many first tokens may come in token frames."""
        if self._embedding is None:
            return 0
        if self.lease.split == 0:
            return self.lease.max_tokens
        if self._moved is not None:
            return self._moved.num_tokens
        return 0 if self._below is None else self._below.max_tokens

    @property
    def max_positions(self) -> int:
        """How far positions may reach while tokens leave its cache; 0: none leaves."""
        return self._leaving.max_positions

    def _embed(self, frame: Frame) -> FloatRows:
        """The rows of a token frame as they enter layer 0. Raises BadFrameError."""
        end = frame.first_position + len(frame.token_ids)
        if self._embedding is None or end > self.token_rows:
            raise BadFrameError(
                f"frame {frame.sequence} brings ids without rows up to position {end}; this "
                f"session takes {self.token_rows} so"
            )
        if self._below is not None:
            if frame.first_position > self._below.length:
                raise BadFrameError(f"frame {frame.sequence} brings ids behind rows")
            self._below.rollback(frame.first_position)
        return self._embedding(frame.token_ids)

    def _free_below(self) -> None:
        if self._below is not None:
            self._below.close()
            self._below = None

    def _check(self, frame: Frame, starts: range) -> None:
        """Refuse what no session may send; it starts in `starts` or right behind them."""
        most, tokens = self._max_frame_tokens, self.lease.max_tokens
        check_frame(frame, starts, max_rows=most, max_tokens=tokens, vocab_size=self._vocab_size)
