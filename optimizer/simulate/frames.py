"""A generation's frames on the device: computed, encoded, sent, and sent again after a loss."""

from __future__ import annotations

from functools import partial
from typing import Final, NamedTuple

from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.move_ways import KvFrameCost
from optimizer.simulate.sessions import FrameInFlight, SimulatedSession
from protos.sizes import token_frame_bytes

# The level of a token frame, as in the edge's traces: without keys and values, and with them.
IDS: Final = "ids"
KV_LEVELS: Final = "kv:"


class JournalEntry(NamedTuple):
    """A frame that was sent, as a replay needs it. `entry`: as a FrameInFlight has it."""

    position: int
    num_rows: int
    num_bytes: int
    decode_s: float
    entry: int | None = None


class SimulatedFrameSender:
    """Sends the frames of one session of a generation, at `split`.

    `level`: the codec level of the next frame. `front_s`, `encode_s`, `num_bytes`: seconds on the
    device and bytes of the frame sent last.
    """

    __slots__ = (
        "_context",
        "_device",
        "_entry",
        "_front",
        "_journal",
        "_num_frames",
        "encode_s",
        "front_s",
        "level",
        "num_bytes",
    )

    def __init__(self, context: SimulationContext, device: Device, split: int) -> None:
        self._context = context
        self._device = device
        self._front = device.front.at(split)
        self._entry = None if split == context.plan.partition.split else split
        self._num_frames = 0
        self._journal: list[JournalEntry] = []
        self.level = context.levels[context.plan.level]
        self.front_s = self.encode_s = 0.0
        self.num_bytes = 0

    @property
    def has_journal(self) -> bool:
        """Whether there are frames that a new session needs again."""
        return bool(self._journal)

    def forget(self) -> None:
        """The session is open: no replay is wanted, unless a server may be lost."""
        if not self._context.keep_journal:
            self._journal.clear()

    def send_chunk(
        self,
        session: SimulatedSession,
        at_s: float,
        *,
        position: int,
        rows: int,
        is_last: bool,
        behind_s: float | None = None,
    ) -> float:
        """A chunk of the prompt, begun at `at_s`; returns when the device is free again.

        behind_s: when the Open leaves that it follows; None: the session is open.
        """
        self.front_s = self._front.seconds(rows, position)
        sent_s = self._send(
            session,
            at_s,
            position=position,
            rows=rows,
            num_logits=int(is_last),
            wanted=is_last,
            of_prompt=True,
            behind_s=behind_s,
        )
        if self._context.plan.partition.split == 0:  # no rows there are
            self._context.record.prompt_ids += rows
            self._context.record.id_bytes += self.num_bytes
        return sent_s

    def send_ids(
        self,
        session: SimulatedSession,
        at_s: float,
        *,
        position: int,
        rows: int,
        is_last: bool,
        behind_s: float | None = None,
        kv: KvFrameCost | None = None,
        kv_left: int = 0,
    ) -> None:
        """The next frame, token ids: it takes the device no time.

        is_last, behind_s: as in `send_chunk`; the last brings a token. kv: keys and values beside
        the ids, which are encoded, and kv_left: as in FrameInFlight. The journal keeps ids alone.
        """
        context, counts = self._context, self._context.record.level_counts
        self.front_s = 0.0
        self.encode_s = kv.encode_s if kv is not None else 0.0
        message = partial(
            token_frame_bytes,
            rows,
            sequence=self._num_frames,
            first_position=position,
            want_token=is_last,
        )
        self.num_bytes = message(kv_bytes=0 if kv is None else kv.kv_bytes)
        self._num_frames += 1
        level = IDS if kv is None else KV_LEVELS + kv.level
        counts[level] = counts.get(level, 0) + 1
        if context.keep_journal or behind_s is not None:
            self._journal.append(JournalEntry(position, rows, message(), 0.0, entry=0))
        frame = FrameInFlight(
            session,
            num_rows=rows,
            num_logits=int(is_last),
            position=position,
            decode_s=0.0 if kv is None else kv.decode_s,
            sent_s=at_s,
            edge_s=self.encode_s,
            wanted=is_last,
            entry=0,
            kv_left=None if kv is None else kv_left,
        )
        self._upload(frame, max(at_s, behind_s or 0.0), self.num_bytes)

    def send_step(
        self,
        session: SimulatedSession,
        at_s: float,
        *,
        position: int,
        rows: int,
        draft_s: float,
        wait_s: float = 0.0,
        tokens: int | None = None,
        is_ahead: bool = False,
    ) -> float:
        """A decode step with its drafts, begun at `at_s`; returns when the device is free again.

        draft_s: the drafter's seconds. wait_s: seconds before them, of other work. Drafts go
        through the front one by one, as in `edge.generation.draft_frames`. tokens,
        is_ahead: as of a FrameInFlight.
        """
        self.front_s = wait_s + draft_s
        for at in range(position, position + rows):
            self.front_s += self._front.step_s(at)
        return self._send(
            session,
            at_s,
            position=position,
            rows=rows,
            num_logits=rows,
            wanted=True,
            of_prompt=False,
            idle_s=wait_s,
            tokens=tokens,
            is_ahead=is_ahead,
        )

    def replay(self, session: SimulatedSession, *, want_last: bool, is_step: bool) -> None:
        """Send every frame again, now. want_last: the last one still has to bring tokens."""
        now_s = self._context.env.now
        for left, sent in zip(reversed(range(len(self._journal))), self._journal, strict=True):
            wanted = left == 0 and want_last
            frame = FrameInFlight(
                session,
                num_rows=sent.num_rows,
                num_logits=(sent.num_rows if is_step else 1) if wanted else 0,
                position=sent.position,
                decode_s=sent.decode_s,
                sent_s=now_s,
                edge_s=0.0,
                wanted=wanted,
                entry=sent.entry,
            )
            self._upload(frame, now_s, sent.num_bytes)

    def _send(
        self,
        session: SimulatedSession,
        at_s: float,
        *,
        position: int,
        rows: int,
        num_logits: int,
        wanted: bool,
        of_prompt: bool,
        idle_s: float = 0.0,
        behind_s: float | None = None,
        tokens: int | None = None,
        is_ahead: bool = False,
    ) -> float:
        context, level = self._context, self.level
        self.num_bytes, self.encode_s, decode_s = level.frame(rows, of_prompt=of_prompt)
        self._num_frames += 1
        self._device.front.busy_s += self.front_s + self.encode_s - idle_s
        sent_s = at_s + self.front_s + self.encode_s
        counts = context.record.level_counts
        counts[level.name] = counts.get(level.name, 0) + 1
        if context.keep_journal or behind_s is not None:
            self._journal.append(
                JournalEntry(position, rows, self.num_bytes, decode_s, self._entry)
            )
        frame = FrameInFlight(
            session,
            num_rows=rows,
            num_logits=num_logits,
            position=position,
            decode_s=decode_s,
            sent_s=sent_s,
            edge_s=self.front_s + self.encode_s,
            wanted=wanted,
            entry=self._entry,
            tokens=tokens,
            is_ahead=is_ahead,
        )
        self._upload(frame, max(sent_s, behind_s or 0.0), self.num_bytes)
        return sent_s

    def _upload(self, frame: FrameInFlight, sent_s: float, num_bytes: int) -> None:
        context, device = self._context, self._device
        context.record.up_bytes += num_bytes
        device.lanes.up.send(
            sent_s + device.front.message_s,
            num_bytes,
            lambda t: context.at(t, frame.arrive),
        )
