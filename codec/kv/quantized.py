"""Keys and values as integer codes: calibrated on the tokens of the frame itself.

Every channel of every head has a mean and a step of its own, for keys and for values. They are
measured on the frame's tokens and sent in it: a channel's mean drifts with the position, since
positions rotate the keys. A code is the distance from the mean in steps. b bits mean that seven
standard deviations are 2^b - 1 steps.

Some channels of the keys vary much more than the others, and their error would rule the scores. So
a channel's deviation counts as at most `THRESHOLD` times its layer's median: beyond, the step stays
and the codes grow. This is threshold splitting (`codec.levels.threshold`) by channel: the outliers
get more bits.

Codes go through the entropy coder by families (`codec.entropy.integers`). The models are counted on
the frame's own codes and sent in it.

Payload: per channel, keys before values in each layer: means in fp16, steps, families (a byte
each); one byte: how many families occur; for each its number and 64 frequencies of 16 bits; codes.

Source: ours. A step a channel for keys is known from KIVI (arXiv:2402.02750).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from codec.arrays import F32, U8, widened
from codec.entropy.counts import count_symbols
from codec.entropy.integers import (
    ALPHABET,
    MAX_CODE,
    NUM_FAMILIES,
    Families,
    decode_codes,
    encode_codes,
    family_of_scale,
)
from codec.entropy.rans import TOTAL, Models
from codec.errors import EncodeError, FrameError, TablesError
from codec.levels.tabq import STEPS

SPREAD: Final = 7.0  # standard deviations that 2^bits - 1 steps cover
THRESHOLD: Final = 3.0  # times the layer's median deviation, beyond which steps grow no more
_FP16_MAX: Final = 65504.0
_CHANNEL_BYTES: Final = 4
_MODEL_BYTES: Final = 1 + 2 * ALPHABET


def encode_quantized(kv: F32, bits: int) -> bytes:
    """kv: finite float32 [T, n, 2, G, d]. Raises EncodeError for values that no code reaches."""
    num_tokens, num_layers = kv.shape[:2]
    rows = kv.reshape(num_tokens, -1)  # [T, C]
    means = np.clip(rows.mean(axis=0), -_FP16_MAX, _FP16_MAX).astype("<f2")  # [C]
    centred = rows - means.astype(np.float32)
    deviation = np.sqrt(np.mean(np.square(centred, dtype=np.float64), axis=0))  # [C]
    by_layer = deviation.reshape(num_layers, 2, -1).copy()
    median = np.median(by_layer[:, 0], axis=1, keepdims=True)
    by_layer[:, 0] = np.minimum(by_layer[:, 0], THRESHOLD * median)
    wanted = by_layer.reshape(-1) * SPREAD / (2**bits - 1)
    # The largest step of the grid that is not above the wanted one; 1: where nothing varies.
    index = np.searchsorted(STEPS, wanted.astype(np.float32), side="right") - 1
    steps = np.clip(index, 1, len(STEPS) - 1).astype(np.uint8)
    codes = np.rint(centred / STEPS[steps])
    if np.abs(codes).max() > MAX_CODE:
        raise EncodeError("keys or values too far from each other for this level")
    codes = codes.astype(np.int32)
    families = family_of_scale(deviation / STEPS[steps])  # [C]
    family = np.broadcast_to(families, codes.shape).reshape(-1)
    flat = np.ascontiguousarray(codes).reshape(-1)
    counts = count_symbols(family, flat)
    models = Models.from_counts(counts)
    used = np.flatnonzero(counts.sum(axis=1))
    parts = [means.tobytes(), steps.tobytes(), families.tobytes(), bytes((len(used),))]
    for each in used:
        frequencies = np.diff(models.cdf[each].astype(np.int64))
        parts += [bytes((each,)), frequencies.astype("<u2").tobytes()]
    parts.append(encode_codes(Families(models=models), family, flat))
    return b"".join(parts)


def decode_quantized(payload: bytes, num_tokens: int, shape: tuple[int, int, int, int]) -> F32:
    """The inverse, float32 [T, n, 2, G, d] for shape (n, 2, G, d). Raises FrameError."""
    num_channels = int(np.prod(shape))
    at = _CHANNEL_BYTES * num_channels
    if len(payload) < at + 1:
        raise FrameError("kv payload ends inside its channels")
    means = widened(np.frombuffer(payload, "<f2", count=num_channels))
    steps = np.frombuffer(payload, np.uint8, count=num_channels, offset=2 * num_channels)
    families = np.frombuffer(payload, np.uint8, count=num_channels, offset=3 * num_channels)
    if families.max() >= NUM_FAMILIES:
        raise FrameError(f"kv payload names family {families.max()}, there are {NUM_FAMILIES}")
    models, at = _read_models(payload, at, families)
    family = np.ascontiguousarray(np.broadcast_to(families, (num_tokens, num_channels)))
    data = memoryview(payload)[at:]
    codes, used = decode_codes(Families(models=models), family.reshape(-1), data)
    if used != len(data):
        raise FrameError(f"{len(data) - used} bytes behind the codes of a kv payload")
    rows = codes.reshape(num_tokens, num_channels).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses what is not finite
        rows *= STEPS[steps]
        rows += means
    return rows.reshape(num_tokens, *shape)


def _read_models(payload: bytes, at: int, families: U8) -> tuple[Models, int]:
    """The models of the families that the channels name, and where the codes begin."""
    count, at = payload[at], at + 1
    end = at + count * _MODEL_BYTES
    if count > NUM_FAMILIES or len(payload) < end:
        raise FrameError("kv payload ends inside its models")
    cdf: npt.NDArray[np.int64] = np.tile(
        np.linspace(0, TOTAL, ALPHABET + 1).astype(np.int64), (NUM_FAMILIES, 1)
    )
    known = np.zeros(NUM_FAMILIES, dtype=np.bool_)
    for begin in range(at, end, _MODEL_BYTES):
        each = payload[begin]
        frequencies = np.frombuffer(payload, "<u2", count=ALPHABET, offset=begin + 1)
        sums = np.cumsum(frequencies.astype(np.int64))
        if each >= NUM_FAMILIES or known[each] or sums[-1] != TOTAL or not frequencies.all():
            raise FrameError("kv payload with a damaged model")
        known[each] = True
        cdf[each, 1:] = sums
    if not known[families].all():
        raise FrameError("kv payload without a model of one of its families")
    try:
        return Models.from_cdf(cdf.astype(np.uint16)), end
    except TablesError as error:
        raise FrameError(f"kv payload with a damaged model: {error}") from error
