"""Frames that refer to a session's rows: the server holds the same rows, whatever was guessed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from codec.bench import synthetic_ladder, synthetic_rows
from codec.frame import RECALLED, peek_level
from codec.session_coder import SessionCoder
from edge.generation.journal import Journal
from edge.generation.session_frames import SessionFrames
from protos.messages import Frame

LADDER = synthetic_ladder(96)
LEVEL = "calibrated"
VOCAB = 6


class Cloud:
    """Runs frames by the server's rule, and answers as a model of few tokens would."""

    def __init__(self) -> None:
        self.coder = SessionCoder(LADDER)
        self.tokens: list[int] = []
        self.last: int | None = None

    def answer(self, frame: Frame) -> tuple[int, ...]:
        """The new tokens; none for a frame that does not run, or that asks for none."""
        first = frame.first_position
        if frame.ahead and (first != len(self.tokens) or frame.token_ids[0] != self.last):
            return ()
        ids = np.asarray(frame.token_ids, dtype=np.int64)
        _, arrived = self.coder.decode(frame.hidden, token_ids=ids, first_position=first)
        self.coder.take(first, ids, arrived)
        del self.tokens[first:]
        self.tokens.extend(frame.token_ids)
        if not frame.want_token:
            return ()
        sure = len(self.tokens) - frame.num_drafts
        found = []
        for at in range(sure, len(self.tokens) + 1):
            found.append(true_token(at))
            if at == len(self.tokens) or self.tokens[at] != found[-1]:
                break
        del self.tokens[sure + len(found) - 1 :]
        self.last = found[-1]
        return tuple(found)


def true_token(position: int) -> int:
    """What the model says at a position."""
    return (position * position + position // 3) % VOCAB


class Device:
    """Sends frames with guesses, some of them wrong, ahead of answers and in place of others."""

    def __init__(self, seed: int) -> None:
        self.journal = Journal()
        self.frames = SessionFrames(LADDER)
        self.rng = np.random.default_rng(seed)
        self.tokens = [true_token(at) for at in range(20)]
        self.rows: dict[tuple[int, ...], np.ndarray] = {}

    def row(self, path: list[int]) -> np.ndarray:
        """What the front makes of a path's last token."""
        rows, _ = synthetic_rows(LADDER, 1, seed=path[-1] + 1000 * (len(path) % 7))
        return rows

    def send(self, path: list[int], ids: list[int], **fields: bool | int) -> None:
        """A frame of `ids` behind `path`."""
        is_alternative = bool(fields.pop("alternative", False))
        rows = np.concatenate([self.row([*path, *ids[: index + 1]]) for index in range(len(ids))])
        hidden = self.frames.encode(
            LEVEL,
            rows,
            np.asarray(ids, dtype=np.int64),
            first_position=len(path),
            journal=self.journal,
        )
        frame = Frame(
            sequence=len(self.journal),
            first_position=len(path),
            token_ids=tuple(ids),
            hidden=hidden,
            **{"want_token": True, "num_drafts": len(ids) - 1, **fields},  # type: ignore[arg-type]
        )
        self.journal.append(frame, is_alternative=is_alternative)

    def guess(self, at: int) -> int:
        """Right most of the time."""
        return true_token(at) if self.rng.random() < 0.7 else int(self.rng.integers(VOCAB))

    def guesses(self, at: int, most: int) -> list[int]:
        """Some guesses from a position on."""
        return [self.guess(at + index) for index in range(int(self.rng.integers(most + 1)))]

    def round(self) -> None:
        """One frame, perhaps some ahead of its answer, and perhaps alternatives."""
        path = self.tokens[:-1]
        ids = [self.tokens[-1], *self.guesses(len(self.tokens), 3)]
        self.send(path, ids)
        path = [*path, *ids]
        first = len(self.tokens)
        for _ in range(int(self.rng.integers(3))):
            ids = [self.guess(len(path)), *self.guesses(len(path) + 1, 2)]
            self.send(path, ids, ahead=True)
            path = [*path, *ids]
        places = sorted(self.rng.integers(first, len(path) + 1, 2).tolist(), reverse=True)
        for at in places[: int(self.rng.integers(3))]:
            other = int(self.rng.integers(VOCAB))
            if at < len(path) and path[at] != other:
                ids = [other, *self.guesses(at + 1, 2)]
                self.send(path[:at], ids, ahead=True, alternative=True)

    def hear(self, cloud: Cloud) -> None:
        """Take the answers to all that is outstanding, as the session does."""
        while self.journal.num_outstanding:
            index = self.journal.num_answered
            frame = self.journal.frames[index]
            found = cloud.answer(frame)
            self.journal.num_answered += 1
            if self.journal.is_void(index) or not frame.want_token:
                assert not found
                continue
            self.tokens.extend(found)
            running = self.journal.settle(len(self.tokens) - 1, self.tokens[-1])
            if running is not None:
                self.journal.adopt(running)
            if self.rng.random() < 0.3 and running is None and not self.journal.num_outstanding:
                return


@pytest.mark.parametrize("seed", range(12))
def test_device_and_server_hold_the_same_rows_whatever_was_guessed(seed: int) -> None:
    device, cloud = Device(seed), Cloud()
    device.send([], device.tokens[:12], want_token=False, num_drafts=0)
    device.send(device.tokens[:12], device.tokens[12:], num_drafts=0)
    device.hear(cloud)
    for _ in range(12):
        device.round()
        device.hear(cloud)
    assert device.tokens == [true_token(at) for at in range(len(device.tokens))]
    kinds = [peek_level(frame.hidden)[0] for frame in device.journal.frames]
    assert set(kinds) == {RECALLED}
    # A server that gets the journal holds the same.
    other = Cloud()
    for frame in device.journal.replay(0):
        if frame.ahead:
            continue
        other.answer(replace(frame, ahead=False))
    end = min(len(cloud.tokens), len(other.tokens))
    assert other.coder.check_before(end) == cloud.coder.check_before(end)


def test_a_known_beginning_is_held_from_its_bytes() -> None:
    device, cloud = Device(1), Cloud()
    device.send([], device.tokens[:12], want_token=False, num_drafts=0)
    known = device.journal.frames[0]
    later = Device(2)
    later.journal = Journal([known])
    later.journal.num_answered = 1
    later.send(later.tokens[:12], later.tokens[12:], num_drafts=0)
    cloud.answer(known)
    later.hear(cloud)
    assert later.tokens[20] == true_token(20)
