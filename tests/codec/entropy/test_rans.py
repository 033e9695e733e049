"""rANS: the compiled and the plain coder agree, bytes are pinned, damage never passes unseen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.entropy import rans
from codec.entropy.rans import Models
from codec.errors import FrameError, TablesError
from codec.kernel.library import is_compiled

CODERS = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not is_compiled(), reason="kernel not compiled")),
]
# Four symbols; in 2^14ths. Model 1 is nearly certain.
CDF = np.array([[0, 8192, 12288, 14336, 16384], [0, 1, 2, 16383, 16384]], dtype=np.uint16)
MODELS = Models.from_cdf(CDF)


def by_hand(model_ids: list[int], symbols: list[int]) -> bytes:
    """The textbook recurrence in Python integers, one lane."""
    x, words = 1 << 16, []
    for model, symbol in reversed(list(zip(model_ids, symbols, strict=True))):
        start, end = int(CDF[model][symbol]), int(CDF[model][symbol + 1])
        if x >= (end - start) << 18:
            words.append(x % 65536)
            x //= 65536
        x = x // (end - start) * 16384 + x % (end - start) + start
    return x.to_bytes(4, "little") + b"".join(w.to_bytes(2, "little") for w in reversed(words))


@pytest.mark.parametrize("native", CODERS)
def test_bytes_are_pinned(native: bool) -> None:
    model_ids = np.array([0, 1, 0, 0, 1, 0], dtype=np.uint8)
    symbols = np.array([3, 2, 0, 1, 0, 2], dtype=np.uint8)
    assert rans.encode(MODELS, model_ids, symbols, native=native).hex() == GOLDEN


GOLDEN = "c53882000030"


@pytest.mark.parametrize("native", CODERS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_coding_matches_the_textbook_and_comes_back(native: bool, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    model_ids = rng.integers(0, 2, n).astype(np.uint8)
    symbols = rng.integers(0, 4, n).astype(np.uint8)
    stream = rans.encode(MODELS, model_ids, symbols, native=native)
    if n:
        assert stream == by_hand(model_ids.tolist(), symbols.tolist())
    back, used = rans.decode(MODELS, model_ids, stream + b"rest", native=native)
    assert (back == symbols).all()
    assert used == len(stream)


@pytest.mark.skipif(not is_compiled(), reason="kernel not compiled")
@pytest.mark.parametrize("n", [4096, 8191, 8192, 20_001, 70_000])
def test_kernel_and_numpy_write_and_read_the_same_bytes_with_many_lanes(n: int) -> None:
    rng = np.random.default_rng(n)
    model_ids = rng.integers(0, 2, n).astype(np.uint8)
    symbols = np.where(model_ids == 1, 2, rng.integers(0, 4, n)).astype(np.uint8)
    stream = rans.encode(MODELS, model_ids, symbols, native=True)
    assert rans.encode(MODELS, model_ids, symbols, native=False) == stream
    for native in (True, False):
        back, used = rans.decode(MODELS, model_ids, stream, native=native)
        assert (back == symbols).all()
        assert used == len(stream)


def test_the_stream_is_as_short_as_the_models_say() -> None:
    rng = np.random.default_rng(0)
    symbols = rng.choice(4, 50_000, p=[0.5, 0.25, 0.125, 0.125]).astype(np.uint8)
    model_ids = np.zeros(len(symbols), dtype=np.uint8)
    ideal = MODELS.bits()[0][symbols].sum() / 8
    assert len(rans.encode(MODELS, model_ids, symbols)) < 1.002 * ideal + 4 * 12


@pytest.mark.parametrize("native", CODERS)
def test_damage_is_a_frame_error_or_other_symbols_never_a_crash(native: bool) -> None:
    rng = np.random.default_rng(3)
    model_ids = np.zeros(500, dtype=np.uint8)
    stream = rans.encode(MODELS, model_ids, rng.integers(0, 4, 500).astype(np.uint8))
    refused = 0
    for _ in range(300):
        bad = bytearray(stream)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        try:
            symbols, used = rans.decode(MODELS, model_ids, bytes(bad), native=native)
            assert symbols.max() < 4
            assert used <= len(bad)
        except FrameError:
            refused += 1
    assert refused > 100  # the final state gives much damage away; the frame's check the rest
    for cut in range(0, len(stream), 7):
        with pytest.raises(FrameError):
            rans.decode(MODELS, model_ids, stream[:cut], native=native)


@pytest.mark.parametrize(
    "cdf",
    [
        np.array([[0, 5, 5, 16384]], dtype=np.uint16),
        np.array([[1, 5, 9, 16384]], dtype=np.uint16),
        np.array([[0, 5, 9, 16000]], dtype=np.uint16),
        np.array([[0, 9, 5, 16384]], dtype=np.uint16),
        np.array([[0, 5, 9, 16384]], dtype=np.int32),
        np.zeros((0, 5), dtype=np.uint16),
    ],
)
def test_tables_that_could_mislead_the_decoder_are_refused(cdf: np.ndarray) -> None:
    with pytest.raises(TablesError):
        Models.from_cdf(cdf)
