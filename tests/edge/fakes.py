"""A front, a cloud and a link without ONNX Runtime, torch or sockets, for the session's tests.

The "model": a row is the running hash of all tokens up to it, and the next token is a function
of the row. So a token depends on every earlier one, and a cloud that lost, repeated or
reordered a frame would answer differently.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from codec.kv.frame import KeysValues, KvFrames
from codec.ladder import Ladder
from edge.errors import ConnectError, LostError, TransportError
from edge.net.route import Route
from edge.net.transport import Received
from protos.kept_places import bytes_to_places
from protos.messages import CloudMessage, Frame, Open, Opened, Result, Timings

WIDTH = 4
VOCAB = 50


def next_hash(state: int, token_id: int) -> int:
    return (state * 31 + token_id + 7) % 65_521


def token_of(state: int) -> int:
    return state % VOCAB


def expected_tokens(prompt: list[int], count: int) -> list[int]:
    """What the toy model says, computed without any of the code under test."""
    state = 0
    for token in prompt:
        state = next_hash(state, token)
    answer = []
    for _ in range(count):
        answer.append(token_of(state))
        state = next_hash(state, answer[-1])
    return answer


def surprise_of(state: int, token_id: int) -> int:
    """The byte that says how surprising a token was behind a row."""
    return (state * 7 + token_id) % 256


class FakeFront:
    """Keeps one hash a token as its cache; a row carries it, its own position and the split."""

    def __init__(self) -> None:
        self.cache: list[int] = []
        self.token_ids: list[int] = []
        self.steps: list[int] = []
        self.split = 1

    @property
    def num_tokens(self) -> int:
        return len(self.cache)

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        rows = np.zeros((len(token_ids), WIDTH), dtype=np.float32)
        for index, token in enumerate(token_ids):
            self.cache.append(next_hash(self.cache[-1] if self.cache else 0, int(token)))
            rows[index, :3] = self.cache[-1], len(self.cache) - 1, self.split
        self.token_ids += token_ids.tolist()
        self.steps.append(len(token_ids))
        return rows

    def rollback(self, num_tokens: int) -> None:
        del self.cache[num_tokens:]
        del self.token_ids[num_tokens:]
        while (left := sum(map(abs, self.steps)) - num_tokens) > 0:
            if (count := abs(self.steps.pop())) > left:
                self.steps.append(left - count)

    def keep_slots(self, slots: Sequence[int]) -> None:
        """See FrontEngine."""
        self.cache = [self.cache[slot] for slot in slots]
        self.token_ids = [self.token_ids[slot] for slot in slots]
        self.steps = [len(slots)]

    def keep_steps(self, steps: Sequence[Sequence[int]]) -> None:
        """See FrontEngine."""
        kept = 0
        for count, ids in zip(self.steps, steps, strict=False):
            if self.token_ids[kept : kept + count] != list(ids):
                break
            kept += count
        self.rollback(kept)

    def keep(self, token_ids: Sequence[int]) -> None:
        """See FrontEngine."""
        same = 0
        for one, other in zip(self.token_ids, token_ids, strict=False):
            if one != other:
                break
            same += 1
        self.rollback(same)

    def cached_from(self, split: int) -> FakeKv | None:
        """See FrontEngine."""
        return FakeKv(range(split, self.split), self.cache) if split < self.split else None

    def move_to(self, split: int) -> None:
        """See FrontEngine: towards the last layer, and at 0, the cache is lost."""
        if split > self.split or split == 0:
            self.rollback(0)
        self.split = split


class FakeKv:
    """Keys and values that carry a token's hash and its position, as they are now."""

    num_heads = 1
    head_dim = 2

    def __init__(self, layers: range, cache: Sequence[int]) -> None:
        self.layers = layers
        self._cache = list(cache)

    def read(self, begin: int, end: int) -> KeysValues:
        kv = np.zeros((end - begin, len(self.layers), 2, 1, 2), dtype=np.float32)
        kv[..., 0] = np.array(self._cache[begin:end])[:, None, None, None]
        kv[..., 1] = np.arange(begin, end)[:, None, None, None]
        return kv


class FakeCloud:
    """Answers frames like the cloud would; its cache holds rows and must never have a hole.

    split: of the rows that it takes; None: any.
    """

    def __init__(self, split: int | None = None) -> None:
        self.split = split
        self.ladder = Ladder.lossless(WIDTH)
        self.rows: list[int] = []
        self.next_sequence = 0
        self.last_token: int | None = None
        self.older: FakeCloud | None = None  # while keys and values are to come
        self.num_kept = 0  # tokens that they are of
        self.is_over = False
        self.prompt_left = 0  # prompt tokens in the cache and to come; 0: nothing is reported

    def go_on_from(self, older: FakeCloud, num_tokens: int) -> bool:
        """Whether this cloud begins with the older one's tokens; the older one ends."""
        older.is_over = True
        if not 0 < num_tokens <= len(older.rows) or older.older is not None:
            return False
        self.older, self.num_kept = older, num_tokens
        return True

    def answer(self, frame: Frame) -> Result:
        if self.is_over:
            raise AssertionError("a frame for a session that another one went on from")
        if frame.sequence != self.next_sequence:
            raise AssertionError(f"frame {frame.sequence}, expected {self.next_sequence}")
        self.next_sequence += 1
        if frame.kv or self.older is not None:
            return self._take_kv(frame)
        last_token, self.last_token = self.last_token, None
        if frame.kept:
            places, num_tokens = bytes_to_places(frame.kept)
            if frame.first_position != len(places) or num_tokens > len(self.rows):
                raise AssertionError("other places than the cache has")
            gone = {*range(num_tokens)} - {*places}
            self.prompt_left -= sum(place < self.prompt_left for place in gone)
            self.rows = [self.rows[place] for place in places]
        if frame.ahead and (
            frame.first_position != len(self.rows) or frame.token_ids[0] != last_token
        ):
            self.last_token = last_token
            return Result(sequence=frame.sequence, token_ids=(), num_tokens=len(self.rows))
        rows = self._embed(frame) if frame.is_tokens else self._decode(frame)
        if frame.first_position > len(self.rows):
            raise AssertionError("a hole in the cache")
        del self.rows[frame.first_position :]
        scored = b""
        for place, token_id in enumerate(frame.token_ids, start=frame.first_position):
            if 0 < place < self.prompt_left:
                before = self.rows[-1] if place == frame.first_position else None
                at = place - frame.first_position
                state = int(rows[at - 1, 0]) if before is None else before
                scored += bytes([surprise_of(state, token_id)])
        for offset, row in enumerate(rows):
            if int(row[1]) != frame.first_position + offset:
                raise AssertionError("a row at the wrong position")
            self.rows.append(int(row[0]))
        tokens: list[int] = []
        surprises = b""
        if frame.want_token:
            first = len(self.rows) - frame.num_drafts - 1
            for index in range(frame.num_drafts + 1):
                tokens.append(token_of(self.rows[first + index]))
                surprises += bytes([surprise_of(self.rows[first + index], tokens[-1])])
                if (
                    index == frame.num_drafts
                    or frame.token_ids[len(frame.token_ids) - frame.num_drafts + index]
                    != tokens[-1]
                ):
                    break
            del self.rows[first + len(tokens) :]
            self.last_token = tokens[-1]
        return Result(
            sequence=frame.sequence,
            token_ids=tuple(tokens),
            num_tokens=len(self.rows),
            timings=Timings(compute_s=0.5, batch_sessions=1, batch_rows=len(rows)),
            entropies=surprises if self.prompt_left else b"",
            prompt_entropies=scored,
        )

    def _take_kv(self, frame: Frame) -> Result:
        older, begin = self.older, len(self.rows)
        end = begin + len(frame.token_ids)
        if older is None or older.split is None or self.split is None or not frame.kv:
            raise AssertionError("keys and values out of turn")
        if frame.first_position != begin or end > self.num_kept:
            raise AssertionError("keys and values of other positions")
        frames = KvFrames(
            hidden_size=WIDTH, layers=range(self.split, older.split), num_heads=1, head_dim=2
        )
        kv = frames.decode(frame.kv, num_tokens=len(frame.token_ids))
        self.rows += older.rows[begin:end]
        if not (kv == FakeKv(frames.layers, self.rows).read(begin, end)).all():
            raise AssertionError("keys and values of other tokens")
        self.older = None if end == self.num_kept else older
        return Result(sequence=frame.sequence, token_ids=(), num_tokens=end)

    def _decode(self, frame: Frame) -> npt.NDArray[np.float32]:
        rows = self.ladder.decode(
            frame.hidden,
            num_rows=len(frame.token_ids),
            token_ids=np.asarray(frame.token_ids, dtype=np.int64),
        )
        if self.split is not None and not (rows[:, 2] == self.split).all():
            raise AssertionError("rows of another split")
        return rows

    def _embed(self, frame: Frame) -> npt.NDArray[np.float32]:
        """What the front would have sent for these tokens."""
        front = FakeFront()
        front.cache = self.rows[: frame.first_position]
        return front.forward(np.asarray(frame.token_ids, dtype=np.int64))


@dataclass
class FakeTransport:
    """Streams to fresh fake clouds. `fault` is asked before every message received.

    It returns an error to raise instead (the stream is then dead and its cloud forgotten), or
    None. `open_errors` are raised by the first calls of `open`.
    """

    address: str = "fake:1"
    fault: Callable[[], TransportError | None] = lambda: None
    open_errors: list[TransportError] = field(default_factory=list)
    clouds: list[FakeCloud] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)
    requests: list[Open] = field(default_factory=list)
    routes: list[Route | None] = field(default_factory=list)
    opens: int = 0
    closed: int = 0
    clock: Callable[[], float] = lambda: 0.0
    max_frame_tokens: int = 512
    token_rows: int = 0
    quiet_polls: int = 0  # how often `poll` finds nothing on a fresh stream
    errors_at_open: list[TransportError] = field(default_factory=list)  # in place of an Opened
    continues: bool = False  # whether sessions may go on from older ones
    lets_leave: bool = True  # whether tokens may leave a session's cache
    by_id: dict[str, FakeCloud] = field(default_factory=dict)

    def open(self, request: Open, timeout_s: float, route: Route | None = None) -> FakeStream:
        self.opens += 1
        self.requests.append(request)
        self.routes.append(route)
        if self.open_errors:
            raise self.open_errors.pop(0)
        cloud = FakeCloud(request.split)
        cloud.prompt_left = request.prompt_tokens if request.entropies else 0
        older = self.by_id.pop(request.continues, None)
        continued = (
            self.continues and older is not None and cloud.go_on_from(older, request.kv_tokens)
        )
        self.clouds.append(cloud)
        self.by_id[request.session_id] = cloud
        return FakeStream(self, request, cloud, continued=continued)


class FakeStream:
    def __init__(
        self,
        transport: FakeTransport,
        request: Open,
        cloud: FakeCloud,
        *,
        continued: bool = False,
    ) -> None:
        self.transport = transport
        self.cloud = cloud
        self.inbox: list[CloudMessage] = [
            Opened(
                session_id=request.session_id,
                max_frame_tokens=transport.max_frame_tokens,
                token_rows=min(request.token_rows, transport.token_rows),
                continued=continued,
                max_positions=request.max_positions if transport.lets_leave else 0,
            )
        ]
        self.sent: list[Frame] = []
        self.dead = False
        self.is_ended = False
        self.quiet_polls = transport.quiet_polls
        self.error = transport.errors_at_open.pop(0) if transport.errors_at_open else None
        transport.streams.append(self)

    def send(self, frame: Frame) -> int:
        self.sent.append(frame)
        if not self.dead:
            self.inbox.append(self.cloud.answer(frame))
        return len(frame.hidden) + len(frame.kv) + 10

    def receive(self, timeout_s: float) -> Received:
        if error := self.error or self.transport.fault():
            self.dead = True
            raise error
        if not self.inbox:
            raise LostError("nothing to receive: the edge waits for what it did not ask")
        return Received(self.inbox.pop(0), 7, self.transport.clock())

    def poll(self) -> Received | None:
        if self.quiet_polls:
            self.quiet_polls -= 1
            return None
        return self.receive(0.0) if self.inbox and not self.dead else None

    def hang_up(self) -> None:
        self.dead = True

    def close(self) -> None:
        self.transport.closed += 1
        self.is_ended = True

    def abort(self) -> None:
        self.dead = True
        self.is_ended = True


def random_faults(seed: int, rate: float) -> Callable[[], TransportError | None]:
    """A fault at random moments, and one at the twelfth message for certain."""
    rng = random.Random(seed)
    messages = itertools.count(1)

    def fault() -> TransportError | None:
        if next(messages) != 12 and rng.random() >= rate:
            return None
        return LostError("cut") if rng.random() < 0.5 else ConnectError("away")

    return fault
