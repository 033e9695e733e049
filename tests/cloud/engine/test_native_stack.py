"""The compiled kernel: the same bits on any number of threads; forks; rows that overflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.frame_work import FrameWork
from cloud.errors import BadFrameError
from cloud.kernel import library as native
from cloud.kv.pool import KvPool
from cloud.sessions.session import ServerSession
from codec.ladder import Ladder
from decoding.params import SamplingParams
from protos.messages import Frame, Result, Timings
from tests.cloud.tiny_bundle import quantized_back, save_back
from tests.tiny_models import make_tiny_model

needs_kernel = pytest.mark.skipif(
    native.load() is None, reason="the kernel was not built, or this processor has no AVX2"
)

# A product whose result is known, whatever happened to the process before.
PRODUCT = """
import os, threading, time
import torch
from cloud.kernel import library as native
kernel = native.load()
packed = native.PackedLinear(torch.ones(256, 64, dtype=torch.int8), torch.ones(256), None)
rows = torch.ones(3, 64)
expected = torch.full((3, 256), 64.0)
def use(threads):
    torch.set_num_threads(threads)
    for _ in range(3):
        assert torch.equal(kernel.linear(rows, packed), expected)
"""


def run_python(code: str) -> None:
    subprocess.run([sys.executable, "-c", PRODUCT + code], check=True, timeout=60)


@needs_kernel
def test_threads_come_and_go_between_steps() -> None:
    """A thread that found the last step's work would read memory that is gone, or wait for ever."""
    run_python(
        """
for threads in (2, 4, 1, 8, 3):
    kernel.set_threads(threads)
    time.sleep(0.02)  # they begin before there is work
    use(threads)
"""
    )


@needs_kernel
def test_a_forked_child_starts_threads_of_its_own() -> None:
    """It has none of its parent's, even where another of those was in the middle of a product."""
    run_python(
        """
use(3)
stop = threading.Event()
def keep_busy():
    while not stop.is_set():
        kernel.linear(rows, packed)
other = threading.Thread(target=keep_busy)
other.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        use(3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
other.join()
"""
    )


@needs_kernel
def test_callers_on_several_threads_take_turns() -> None:
    run_python(
        """
failed = []
def caller():
    try:
        for _ in range(200):
            assert torch.equal(kernel.linear(rows, packed), expected)
    except AssertionError as error:
        failed.append(error)
torch.set_num_threads(2)
callers = [threading.Thread(target=caller) for _ in range(4)]
for thread in callers: thread.start()
for thread in callers: thread.join()
assert not failed
"""
    )


@needs_kernel
def test_steps_have_the_same_bits_on_any_number_of_threads(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also beside rows enough for several panels, and with more threads than processors."""
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    quantized_back(tmp_path / "cloud")
    engine = BackEngine(load_back(tmp_path / "cloud", first_layer=0))
    assert engine.is_native
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    rows = torch.randn(120, engine.hidden_size)
    got: dict[tuple[int, int], torch.Tensor] = {}
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for chunk in (120, 50, 7):
            lease = KvPool(engine.kv_shape, limit_bytes=1 << 24).lease(split=0, max_tokens=120)
            parts = [
                engine.forward([BatchEntry(lease=lease, rows=part, num_logits=len(part))])[0]
                for part in rows.split(chunk)
            ]
            got[threads, chunk] = torch.cat(parts)
    first = got[1, 120]
    assert all(torch.equal(first, other) for other in got.values())


@needs_kernel
def test_sessions_that_all_enter_behind_the_last_layer_need_the_head_alone(tmp_path: Path) -> None:
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    quantized_back(tmp_path / "cloud")
    engine = BackEngine(load_back(tmp_path / "cloud", first_layer=2))
    assert engine.is_native
    pool = KvPool(engine.kv_shape, limit_bytes=1 << 20)
    rows = torch.randn(3, engine.hidden_size, generator=torch.Generator().manual_seed(1))
    with pool.lease(split=engine.num_layers, max_tokens=16) as lease:
        (logits,) = engine.forward([BatchEntry(lease=lease, rows=rows, num_logits=3)])
        assert lease.length == 3
    assert torch.equal(logits, engine.logits(rows))


@pytest.mark.parametrize("form", ["kernel", "torch", "transformers"])
@pytest.mark.parametrize("size", [1e25, 3e38])
def test_a_session_whose_rows_overflow_ends_alone(tmp_path: Path, form: str, size: float) -> None:
    """Its rows are finite, so the wire lets them in. A norm would make zeros of the first size."""
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    if form == "kernel":
        quantized_back(tmp_path / "cloud")
    engine = BackEngine(load_back(tmp_path / "cloud", first_layer=0), fused=form != "transformers")
    ladder = Ladder.lossless(engine.hidden_size)
    kept: list[int] = []

    def session(pool: KvPool) -> ServerSession:
        it = ServerSession(
            "s",
            lease=pool.lease(split=0, max_tokens=64),
            ladder=ladder,
            sampling=SamplingParams(),
            vocab_size=engine.model.config.vocab_size,
            max_frame_tokens=64,
            keep=lambda tokens, num_frames, chain, rows: kept.append(num_frames),
        )
        it.begin_chain(b"\0" * 32)
        return it

    def frame(sequence: int, rows: npt.NDArray[np.float32], *, want: bool) -> Frame:
        ids = tuple(range(len(rows)))
        return Frame(
            sequence=sequence,
            first_position=4 * sequence,
            token_ids=ids,
            hidden=ladder.encode("lossless", rows, np.asarray(ids)),
            want_token=want,
        )

    def run(frames: dict[ServerSession, Frame]) -> dict[ServerSession, Result]:
        works = {it: it.begin(sent) for it, sent in frames.items()}
        outputs = engine.forward(
            [
                BatchEntry(
                    lease=it.lease, rows=torch.from_numpy(work.rows), num_logits=work.num_logits
                )
                for it, work in works.items()
                if isinstance(work, FrameWork)
            ]
        )
        answers = {}
        for (it, work), logits in zip(works.items(), outputs, strict=True):
            assert isinstance(work, FrameWork)
            if it is broken:
                with pytest.raises(BadFrameError, match="overflow"):
                    it.finish(work, logits.numpy(), Timings())
            else:
                answers[it] = it.finish(work, logits.numpy(), Timings())
        return answers

    rows = np.random.default_rng(0).standard_normal((4, engine.hidden_size)).astype(np.float32)
    huge = rows.copy()
    huge[1] *= size / np.abs(huge[1]).max()
    pool = KvPool(engine.kv_shape, limit_bytes=1 << 24)
    alone, honest, broken = (session(pool) for _ in range(3))
    for want in (False, True):
        sequence = int(want)
        run({alone: frame(sequence, rows, want=want)})
        beside = {honest: frame(sequence, rows, want=want)}
        if not want:  # a part of a prompt, whose beginning others would come to share
            beside[broken] = frame(0, huge, want=False)
        run(beside)
    assert kept == [1, 1]
    assert honest.lease.overflowed is False
    assert honest._last_token == alone._last_token is not None
