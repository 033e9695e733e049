"""The engine for GPUs gives what the CPU's engine gives: its kernels in Triton's interpreter.

The interpreter takes seconds for a few rows, so the models are as small as they can be. What only
a GPU shows (graphs, speed, 16 bits) is in `benchmarks/gpu_check.sh`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config

from cloud.attention.paged import has_triton, interprets
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackModel, load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.engine.drawing import Drawing, Drawn
from cloud.engine.launches import launch
from cloud.kv.pool import KvLease, KvPool
from decoding.params import SamplingParams
from decoding.sampler import sample

pytestmark = pytest.mark.skipif(
    not (has_triton() and interprets()), reason="Triton is not installed, or there is a GPU"
)

WIDTH = 32
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": WIDTH,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),  # norms of heads
    "gemma2": Gemma2Config(**SHAPE, sliding_window=4),  # four norms, caps, windows, 1 + weight
}
ROOM = 1 << 20


@pytest.fixture(name="model", params=sorted(CONFIGS), scope="module")
def make_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder: Path = tmp_path_factory.mktemp(request.param)
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture(name="engine", scope="module")
def make_engine(model: Path) -> Any:
    return gpu_engine(load_back(model, first_layer=0))


def gpu_engine(model: BackModel, record: Any = None, *, kv_dtype: torch.dtype | None = None) -> Any:
    from cloud.engine.gpu_engine import GpuEngine

    return GpuEngine(model, recorder=record or replaying, kv_dtype=kv_dtype)


def replaying(run: Callable[[], tuple[Tensor, Tensor]]) -> Any:
    """A recorder that runs the step again, into the same memory, as a graph does."""
    from cloud.engine.graph_recorder import Recorded

    logits, ids = run()

    def replay() -> None:
        new_logits, new_ids = run()
        logits.copy_(new_logits)
        ids.copy_(new_ids)

    return Recorded(replay, logits, ids)


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def leases_of(engine: BackEngine, splits: Sequence[int]) -> list[KvLease]:
    pool = KvPool(engine.kv_shape, limit_bytes=ROOM)
    return [pool.lease(split=split, max_tokens=40) for split in splits]


def position_of(step: int, index: int) -> int:
    """A position for a token to be drawn at: any will do, where it is the same both times."""
    return 100 * step + 10 * index


def play(
    engine: BackEngine, splits: Sequence[int], drawings: Sequence[SamplingParams | None]
) -> list[list[Any]]:
    """A prefill of all sessions, a step, a step with a draft, and a step after its refusal."""
    leases = leases_of(engine, splits)
    counts = [[5, 2, 3][index % 3] for index in range(len(splits))]
    answers: list[list[Any]] = []
    for step in range(4):
        batch: list[BatchEntry] = []
        for index, lease in enumerate(leases):
            count = counts[index] if step == 0 else 3 if step == 2 and index == 0 else 1
            params = drawings[index]
            num_logits = 1 if step == 0 else count
            drawing = None
            if params is not None:
                drawing = Drawing(params=params, position=position_of(step, index))
            batch.append(
                BatchEntry(
                    lease=lease,
                    rows=rows(count, 10 * step + index),
                    num_logits=num_logits,
                    drawing=drawing,
                )
            )
        answers.append(launch(engine, batch).result())
        if step == 2:
            leases[0].rollback(leases[0].length - 2)
    return answers


def test_every_step_equals_the_cpus_engine_whatever_the_splits(model: Path, engine: Any) -> None:
    splits = (1, 0, 1)
    plain = BackEngine(load_back(model, first_layer=0))
    assert engine.num_gpu_layers == 2
    want, got = (play(one, splits, [None] * 3) for one in (plain, engine))
    for expected, answers in zip(want, got, strict=True):
        for a, b in zip(expected, answers, strict=True):
            assert float(np.linalg.norm(a - b) / np.linalg.norm(a)) < 2e-5


def test_keys_and_values_of_8_bits_take_a_quarter_and_move_the_logits_a_little(
    model: Path,
) -> None:
    plain = BackEngine(load_back(model, first_layer=0))
    short = gpu_engine(load_back(model, first_layer=0), kv_dtype=torch.float8_e4m3fn)
    assert short.num_gpu_layers == 2
    assert 4 * short.kv_shape.block_bytes == plain.kv_shape.block_bytes  # of float32
    want, got = (play(one, (1, 0, 1), [None] * 3) for one in (plain, short))
    for expected, answers in zip(want, got, strict=True):
        for a, b in zip(expected, answers, strict=True):
            assert 1e-6 < float(np.linalg.norm(a - b) / np.linalg.norm(a)) < 0.15


def test_sessions_that_enter_deeper_need_no_recording_of_their_own(model: Path) -> None:
    engine = gpu_engine(load_back(model, first_layer=0))
    pool = KvPool(engine.kv_shape, limit_bytes=ROOM)
    for splits in ((0, 0), (0, 1), (1, 0)):
        leases = [pool.lease(split=split, max_tokens=9) for split in splits]
        batch = [BatchEntry(lease=lease, rows=rows(1, 0), num_logits=1) for lease in leases]
        engine.launch(batch).result()
    assert engine.num_graphs == 1


def test_what_was_recorded_ahead_serves_the_steps_and_is_not_recorded_again(model: Path) -> None:
    from cloud.engine.graph_recorder import Recorded
    from cloud.engine.step_graphs import MIN_TOKENS

    made: list[int] = []

    def record(run: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        made.append(1)
        return Recorded(lambda: None, *run())

    engine = gpu_engine(load_back(model, first_layer=0), record)
    pool = KvPool(engine.kv_shape, limit_bytes=8 * ROOM)
    engine.warm_up(pool.arena, split=1, num_rows=3, max_tokens=2 * MIN_TOKENS)
    assert len(made) == engine.num_graphs == 6  # 1, 2 and 4 rows; two lengths of history
    lengths = (MIN_TOKENS, 60, 2 * MIN_TOKENS - 1)
    leases = [pool.lease(split=1, max_tokens=length + 1) for length in lengths]
    for count in (1, 2, 3):
        batch = []
        for lease, length in zip(leases[:count], lengths, strict=False):
            lease.length = length - 2
            batch.append(BatchEntry(lease=lease, rows=rows(1, 0), num_logits=1))
        engine.launch(batch).result()
    assert len(made) == 6


def test_the_device_draws_what_the_logits_say(model: Path, engine: Any) -> None:
    kinds = [SamplingParams(), SamplingParams(temperature=1.2, seed=9), None]
    logits = play(engine, (0, 1, 0), [None] * 3)
    drawn = play(engine, (0, 1, 0), kinds)
    for step, (told, mine) in enumerate(zip(logits, drawn, strict=True)):
        for index, params in enumerate(kinds):
            if params is None:
                np.testing.assert_array_equal(told[index], mine[index])
                continue
            assert isinstance(mine[index], Drawn)
            assert mine[index].is_finite
            expected = tuple(
                sample(row, params, position=position_of(step, index) + at).token_id
                for at, row in enumerate(told[index])
            )
            assert mine[index].token_ids == expected


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy overflows too
def test_a_row_that_overflows_marks_its_own_session_alone(engine: Any) -> None:
    leases = leases_of(engine, (0, 0))
    huge = torch.full((1, WIDTH), 3e38)
    greedy = Drawing(params=SamplingParams(), position=1)
    batch = [
        BatchEntry(lease=lease, rows=part, num_logits=1, drawing=greedy)
        for lease, part in zip(leases, (huge, rows(1, 1)), strict=True)
    ]
    answers = engine.launch(batch).result()
    assert [answer.is_finite for answer in answers] == [False, True]
    assert [lease.overflowed for lease in leases] == [True, False]


def test_a_step_that_cannot_be_recorded_runs_all_the_same(model: Path) -> None:
    def refuse(run: Callable[[], tuple[Tensor, Tensor]]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = gpu_engine(load_back(model, first_layer=0), refuse)
    plain = BackEngine(load_back(model, first_layer=0))
    answers = []
    for one in (plain, engine):
        (lease,) = leases_of(one, (1,))
        entry = BatchEntry(lease=lease, rows=rows(1, 4), num_logits=1)
        answers.append(launch(one, [entry]).result()[0])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    assert engine.num_graphs == 0


def test_a_closed_session_leaves_no_trace_for_the_next(engine: Any) -> None:
    """A line of the tables is given to another session; its pages are that session's."""
    pool = KvPool(engine.kv_shape, limit_bytes=ROOM)
    told = []
    for _ in range(2):
        blocker = pool.lease(split=0, max_tokens=20)
        lease = pool.lease(split=0, max_tokens=20)
        for seed in (1, 2):
            entry = BatchEntry(lease=lease, rows=rows(1, seed), num_logits=1)
            answer = engine.launch([entry]).result()[0]
        told.append(answer)
        lease.close()
        if len(told) == 1:
            blocker.close()
    np.testing.assert_array_equal(told[0], told[1])
