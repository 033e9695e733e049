"""A session holds its rows as they arrived: with decodes ahead, refused drafts and bad frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloud.engine.frame_decoding import Decoded
from cloud.errors import BadFrameError
from cloud.kv.pool import KvPool, KvShape
from cloud.kv.prefix_cache import Beginning
from cloud.sessions.frame_rows import FrameRows
from cloud.sessions.row_memory import RowMemory, RowRoom
from cloud.sessions.session import ServerSession
from codec.bench import synthetic_ladder, synthetic_rows
from codec.session_coder import SessionCoder
from codec.session_rows import HeldBeginning, held_bytes
from decoding.params import SamplingParams
from protos.messages import Frame, Timings

WIDTH, VOCAB = 96, 32
LADDER = synthetic_ladder(WIDTH)
POOL = KvPool(KvShape(num_layers=1, num_kv_heads=1, head_dim=2), limit_bytes=1 << 20)


def session(coder: SessionCoder, room: RowRoom | None = None, **fields: object) -> ServerSession:
    return ServerSession(
        "s",
        lease=POOL.lease(split=0, max_tokens=80, **fields.pop("lease", {})),  # type: ignore[arg-type]
        ladder=LADDER,
        sampling=SamplingParams(),
        vocab_size=VOCAB,
        max_frame_tokens=40,
        rows=FrameRows(LADDER, coder, room),
        **fields,  # type: ignore[arg-type]
    )


class Sender:
    """The device's side. Its tokens come again every five positions."""

    def __init__(self) -> None:
        self.coder = SessionCoder(LADDER)
        self.sequence = 0

    def frame(self, first: int, count: int, *, want: bool = False, drafts: int = 0) -> Frame:
        """A frame of `count` rows from a position on, held by the device too."""
        rows, _ = synthetic_rows(LADDER, count, seed=first)
        ids = (np.arange(first, first + count) % 5).astype(np.int64)
        hidden, arrived = self.coder.encode("calibrated", rows, ids, first_position=first)
        self.coder.take(first, ids, arrived)
        self.sequence += 1
        return Frame(
            sequence=self.sequence - 1,
            first_position=first,
            token_ids=tuple(ids.tolist()),
            hidden=hidden,
            num_drafts=drafts,
            want_token=want,
        )


def run(target: ServerSession, sent: Frame, *, ahead: bool = False) -> None:
    """Begin and finish a frame; ahead: with a decode that came before."""
    decoded = None
    if ahead:
        decode = target.decoder_of(sent)
        assert decode is not None
        decoded = Decoded(decode(), 0.0)
    work = target.begin(sent, decoded)
    target.lease.length += work.left  # type: ignore[union-attr]
    logits = np.zeros((sent.num_drafts + 1 if sent.want_token else 0, VOCAB), dtype=np.float32)
    logits[:, 31] = 9.0  # so that every draft is refused
    target.finish(work, logits, Timings())  # type: ignore[arg-type]


@pytest.mark.parametrize("ahead", [False, True])
def test_both_sides_hold_the_same_rows_when_drafts_are_refused(ahead: bool) -> None:
    device, coder = Sender(), SessionCoder(LADDER)
    it = session(coder)
    assert it.recalls
    run(it, device.frame(0, 20), ahead=ahead)
    run(it, device.frame(20, 5, want=True, drafts=4), ahead=ahead)
    run(it, device.frame(21, 1, want=True), ahead=ahead)
    assert coder.num_tokens == 22
    assert coder.check_before(22) == device.coder.check_before(22)


def test_a_decoder_that_was_asked_for_twice_leaves_the_rows_too() -> None:
    device, coder = Sender(), SessionCoder(LADDER)
    it = session(coder)
    sent = device.frame(0, 20)
    first, second = it.decoder_of(sent), it.decoder_of(sent)
    assert first is not None
    assert second is not first
    it.begin(sent, Decoded(first(), 0.0))
    assert coder.check_before(20) == device.coder.check_before(20)


def test_a_bad_frame_changes_nothing() -> None:
    device, coder = Sender(), SessionCoder(LADDER)
    it = session(coder)
    run(it, device.frame(0, 20))
    before = coder.check_before(20)
    good = device.frame(20, 1)
    with pytest.raises(BadFrameError, match="frame 1"):
        it.begin(replace(good, hidden=good.hidden[:-1] + b"\x00\x01"))
    assert (coder.num_tokens, coder.check_before(20)) == (20, before)
    run(it, good)


def test_a_shared_beginning_comes_with_its_rows() -> None:
    device, coder = Sender(), SessionCoder(LADDER)
    kept: list[tuple[int, HeldBeginning | None]] = []
    first = session(
        coder,
        lease={"shareable_tokens": 16},
        keep=lambda tokens, num_frames, chain, rows: kept.append((num_frames, rows)),
    )
    first.begin_chain(b"\0" * 32)
    run(first, device.frame(0, 16))
    (num_frames, rows) = kept[-1]
    assert rows is not None
    blocks = POOL.share(first.lease, 16)
    tokens = rows.tokens
    other_coder = SessionCoder(LADDER, rows)
    other = session(
        other_coder,
        lease={"shared": blocks},
        beginning=Beginning(
            blocks=blocks, tokens=tokens, num_frames=num_frames, chain=b"c", rows=rows
        ),
    )
    run(other, device.frame(16, 3))
    assert other_coder.check_before(19) == device.coder.check_before(19)


def test_without_a_coder_no_frame_may_refer_to_rows() -> None:
    device = Sender()
    it = ServerSession(
        "s",
        lease=POOL.lease(split=0, max_tokens=40),
        ladder=LADDER,
        sampling=SamplingParams(),
        vocab_size=VOCAB,
        max_frame_tokens=40,
    )
    assert not it.recalls
    with pytest.raises(BadFrameError, match="refers to earlier rows"):
        it.begin(device.frame(0, 3))


def test_rows_take_no_more_memory_than_there_is_for_them_and_give_it_back() -> None:
    rows = RowMemory(held_bytes(80, WIDTH) * 2, hidden_size=WIDTH)
    rooms = [rows.take(80), rows.take(80)]
    assert None not in rooms
    assert rows.take(1) is None
    held = session(SessionCoder(LADDER), room=rooms[0])
    held.close()
    held.close()
    assert rows.used_bytes == held_bytes(80, WIDTH)
    assert rows.take(80) is not None
