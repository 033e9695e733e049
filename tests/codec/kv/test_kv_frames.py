"""Frames of keys and values: exact at lossless, small at the others; bad ones are refused."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

from codec.errors import EncodeError, FrameError
from codec.frame import pack_frame
from codec.kv.frame import KV_BITS, KeysValues, KvFrames

FRAMES = KvFrames(hidden_size=192, layers=range(5, 8), num_heads=2, head_dim=16)


def kv_of(num_tokens: int, seed: int = 0) -> KeysValues:
    """Channels of different means and deviations, keys with outlier channels."""
    rng = np.random.default_rng(seed)
    shape = FRAMES.shape
    means = rng.normal(0, 2, shape)
    scales = rng.lognormal(0, 0.5, shape)
    scales[:, 0, :, :2] *= 20
    return np.asarray(means + scales * rng.normal(0, 1, (num_tokens, *shape)), dtype=np.float32)


@pytest.mark.parametrize("num_tokens", [1, 2, 33, 300, 512])
def test_lossless_frames_are_exact(num_tokens: int) -> None:
    kv = kv_of(num_tokens)
    kv.reshape(-1)[0] = -0.0
    frame = FRAMES.encode("lossless", kv)
    back = FRAMES.decode(frame, num_tokens=num_tokens)
    assert back.tobytes() == kv.tobytes()
    assert len(frame) <= FRAMES.max_bytes(num_tokens)


@pytest.mark.parametrize(
    ("level", "most_bits", "most_error"), [("kv8", 8.5, 0.02), ("kv4", 4.6, 0.25)]
)
def test_lossy_frames_are_small_and_near(level: str, most_bits: float, most_error: float) -> None:
    kv = kv_of(512)
    frame = FRAMES.encode(level, kv)
    back = FRAMES.decode(frame, num_tokens=512)
    assert 8 * len(frame) / kv.size < most_bits
    deviation = kv.std(axis=0)
    assert (np.sqrt(np.mean((back - kv) ** 2, axis=0)) < most_error * deviation).all()
    # Outlier channels have the same absolute error as the others allow, so a smaller share.
    share = np.sqrt(np.mean((back - kv) ** 2, axis=0)) / deviation
    assert share[:, 0, :, :2].mean() < 0.6 * share[:, 0, :, 2:].mean()


@pytest.mark.parametrize("level", ["kv8", "kv4"])
def test_values_without_any_spread_and_wild_ones_come_back(level: str) -> None:
    flat = np.full((4, *FRAMES.shape), 3.0, dtype=np.float32)
    assert np.allclose(FRAMES.decode(FRAMES.encode(level, flat), num_tokens=4), 3.0, atol=1e-3)
    wild = kv_of(100)
    wild[0] *= 1e4  # a first token that attends to itself alone
    back = FRAMES.decode(FRAMES.encode(level, wild), num_tokens=100)
    assert np.abs(back - wild).max() < np.abs(wild).max() * 0.2


@pytest.mark.parametrize(
    "kv",
    [
        np.zeros((0, *FRAMES.shape), np.float32),
        np.zeros((2, *FRAMES.shape), np.float64),
        np.zeros((2, 3, 2, 2, 15), np.float32),
        np.full((2, *FRAMES.shape), np.nan, np.float32),
        np.full((2, *FRAMES.shape), np.inf, np.float32),
        np.zeros((513, *FRAMES.shape), np.float32),
    ],
    ids=["none", "type", "shape", "nan", "infinity", "too many"],
)
@pytest.mark.parametrize("level", list(KV_BITS))
def test_what_no_frame_holds_is_refused(level: str, kv: KeysValues) -> None:
    with pytest.raises(EncodeError):
        FRAMES.encode(level, kv)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(EncodeError, match="no level 'kv3'"):
        FRAMES.encode("kv3", kv_of(1))


@pytest.mark.parametrize("level", list(KV_BITS))
def test_damaged_frames_are_refused_or_decode_to_finite_numbers(level: str) -> None:
    """Also with a check that holds: an attacker can make one."""
    rng = random.Random(3)
    frame = FRAMES.encode(level, kv_of(20))
    head = frame[1]
    payload = frame[7:]  # two bytes, a count of one byte, a check of four
    assert pack_frame(head >> 5, head & 31, 20, payload, FRAMES._seed) == frame
    for _ in range(300):
        bad = bytearray(payload)
        for _ in range(rng.randint(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        if rng.random() < 0.3:
            del bad[rng.randrange(len(bad)) :]
        made = pack_frame(head >> 5, head & 31, 20, bytes(bad), FRAMES._seed)
        with contextlib.suppress(FrameError):
            assert np.isfinite(FRAMES.decode(made, num_tokens=20)).all()
        with pytest.raises(FrameError):
            FRAMES.decode(bytes(bad), num_tokens=20)


@pytest.mark.parametrize(
    "other",
    [
        KvFrames(hidden_size=192, layers=range(4, 7), num_heads=2, head_dim=16),
        KvFrames(hidden_size=192, layers=range(5, 9), num_heads=2, head_dim=16),
        KvFrames(hidden_size=192, layers=range(5, 8), num_heads=1, head_dim=32),
    ],
)
def test_a_frame_of_other_layers_or_heads_is_refused(other: KvFrames) -> None:
    frame = FRAMES.encode("lossless", kv_of(3))
    with pytest.raises(FrameError, match="check failed"):
        other.decode(frame, num_tokens=3)


def test_a_count_that_is_not_the_messages_is_refused() -> None:
    frame = FRAMES.encode("kv8", kv_of(8))
    with pytest.raises(FrameError, match="holds 8 tokens, expected 9"):
        FRAMES.decode(frame, num_tokens=9)
    with pytest.raises(FrameError, match="at most 512"):
        FRAMES.decode(frame, num_tokens=513)
    with pytest.raises(FrameError, match="kind 2"):
        FRAMES.decode(pack_frame(2, 0, 1, b"", FRAMES._seed), num_tokens=1)


def test_a_frame_of_many_layers_holds_fewer_tokens() -> None:
    wide = KvFrames(hidden_size=4096, layers=range(64), num_heads=8, head_dim=128)
    assert wide.max_tokens == 1024 * 4096 // (64 * 2 * 8 * 128)
