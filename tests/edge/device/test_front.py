"""The front engine keeps its books: lengths, rollback, limits; bad input changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tomllib

from edge.device import front_graphs
from edge.device.front import FrontEngine
from edge.errors import FrontError, InputError
from optimizer.artifacts.plan import Plan
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.optimizer.export.plans import make_plan
from tests.tiny_models import VOCAB, make_tiny_model

MAX_TOKENS = 24
PROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model("llama", folder)
    return open_source(folder)


@pytest.fixture(scope="module")
def plan(source: ModelSource) -> Plan:
    return make_plan(source, 2, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def edge_dir(source: ModelSource, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edge")
    export_front(source, plan, folder)
    return folder


@pytest.fixture
def front(edge_dir: Path, plan: Plan) -> FrontEngine:
    return FrontEngine.load(edge_dir, plan=plan, threads=1)[0]


def test_tokens_are_counted_and_rows_come_back_one_each(front: FrontEngine) -> None:
    rows = front.forward(np.arange(3, 10))
    assert (rows.shape, rows.dtype.name, front.num_tokens) == ((7, 64), "float32", 7)
    assert front.forward(np.array([5])).shape == (1, 64)
    front.rollback(3)
    assert front.num_tokens == 3
    front.reset()
    assert front.num_tokens == 0


def test_what_a_broken_front_computes_is_named_with_token_and_layer(front: FrontEngine) -> None:
    front.forward(np.array([5, 6, 7]))
    keys, _ = front._segments[0].buffers(1)
    kept = keys.first(3)[:, :, 1].copy()
    keys.first(3)[:, :, 1] = np.nan
    with pytest.raises(FrontError, match=r"token 9 at position 3; .* layer 1, at position 1"):
        front.forward(np.array([9]))
    keys.first(3)[:, :, 1] = kept
    assert front.num_tokens == 3
    assert np.isfinite(front.forward(np.array([9]))).all()


def test_returned_rows_are_the_callers(front: FrontEngine) -> None:
    first = front.forward(np.array([5, 6]))
    kept = first.copy()
    front.forward(np.array([7, 8]))
    np.testing.assert_array_equal(first, kept)


def test_the_same_tokens_after_a_rollback_give_the_same_bits(front: FrontEngine) -> None:
    front.forward(np.arange(10, 20))
    once = front.forward(np.array([50]))
    front.forward(np.array([60, 61, 62]))
    front.rollback(10)
    np.testing.assert_array_equal(front.forward(np.array([50])), once)


def test_the_number_of_threads_changes_no_bit(edge_dir: Path, plan: Plan) -> None:
    """So `--threads` and `--power` change no token."""

    def rows(threads: int) -> list[bytes]:
        (engine,) = FrontEngine.load(edge_dir, plan=plan, threads=threads)
        return [engine.forward(np.arange(10, 10 + size)).tobytes() for size in (9, 1, 1, 5)]

    assert rows(1) == rows(2) == rows(3)


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((range(10, 20), range(20, 24)), 14),
        ((range(10, 20), range(20, 25)), 10),
        ((range(10, 19), (19,)), 0),
        ((range(10, 20), (20, 21, 9, 23)), 10),
        ((), 0),
    ],
)
def test_only_what_was_computed_in_the_same_steps_is_kept(
    front: FrontEngine, steps: tuple[Sequence[int], ...], kept: int
) -> None:
    front.forward(np.arange(10, 20))
    front.forward(np.arange(20, 24))
    front.keep_steps(steps)
    assert front.num_tokens == kept


def test_a_part_of_a_step_does_not_count_as_one(front: FrontEngine) -> None:
    front.forward(np.arange(10, 20))
    front.rollback(4)
    front.forward(np.array([30, 31]))
    front.rollback(5)
    front.keep_steps([range(10, 14), [30]])
    assert front.num_tokens == 0


def test_engines_that_share_weights_have_their_own_caches(edge_dir: Path, plan: Plan) -> None:
    one, other = FrontEngine.load(edge_dir, plan=plan, threads=1, count=2)
    one.forward(np.arange(3, 9))
    other.forward(np.arange(100, 112))
    alone = FrontEngine.load(edge_dir, plan=plan, threads=1)[0]
    alone.forward(np.arange(3, 9))
    np.testing.assert_array_equal(one.forward(np.array([9])), alone.forward(np.array([9])))
    assert (one.num_tokens, other.num_tokens) == (7, 12)


def test_the_cache_can_be_filled_to_the_last_token(front: FrontEngine) -> None:
    front.forward(np.full(MAX_TOKENS, 3))
    with pytest.raises(InputError, match=f"{MAX_TOKENS + 1} tokens exceed"):
        front.forward(np.array([3]))
    assert front.num_tokens == MAX_TOKENS


@pytest.mark.parametrize("ids", [[], [-1], [VOCAB], [3, VOCAB + 5, 3], [2**40]])
def test_unknown_tokens_are_refused_and_change_nothing(front: FrontEngine, ids: list[int]) -> None:
    front.forward(np.array([3, 4]))
    with pytest.raises(InputError, match=f"between 0 and {VOCAB - 1}"):
        front.forward(np.array(ids, dtype=np.int64))
    assert front.num_tokens == 2


@pytest.mark.parametrize("length", [-1, 5])
def test_a_rollback_must_lie_within_what_there_is(front: FrontEngine, length: int) -> None:
    front.forward(np.array([3, 4]))
    with pytest.raises(InputError, match="roll back"):
        front.rollback(length)
    assert front.num_tokens == 2


@pytest.mark.parametrize(("kv_bits", "num_bytes"), [(32, 4), (16, 2), (8, 1)])
def test_the_cache_takes_what_the_plan_says(
    source: ModelSource, tmp_path: Path, kv_bits: int, num_bytes: int
) -> None:
    plan = make_plan(source, 2, kv_bits=kv_bits, max_tokens=MAX_TOKENS)
    export_front(source, plan, tmp_path)
    front = FrontEngine.load(tmp_path, plan=plan, threads=1)[0]
    keys_and_values, layers, kv_heads, head_dim = 2, 2, 2, 16
    expected = keys_and_values * layers * kv_heads * head_dim * MAX_TOKENS * num_bytes
    assert front.kv_bytes == expected
    assert plan.front_kv_bytes() == expected


@pytest.mark.parametrize("content", [None, b"not a graph"])
def test_what_is_no_front_is_refused(tmp_path: Path, plan: Plan, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "front.onnx").write_bytes(content)
    with pytest.raises(FrontError, match=r"front\.onnx: cannot be loaded"):
        FrontEngine.load(tmp_path, plan=plan)


def test_an_onnxruntime_that_is_too_old_is_named(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "front.onnx").write_bytes(b"not a graph")
    monkeypatch.setattr("edge.device.front_graphs.ort.__version__", "1.30.2")
    with pytest.raises(FrontError, match=r"onnxruntime 1\.30\.2 is older than 1\.31; pip install"):
        FrontEngine.load(tmp_path, plan=plan)
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    oldest = ".".join(str(part) for part in front_graphs.OLDEST_ONNXRUNTIME)
    for extra in ("edge", "build"):
        assert f"onnxruntime>={oldest}" in project["optional-dependencies"][extra]


def test_a_low_memory_front_computes_the_same(edge_dir: Path, plan: Plan) -> None:
    """Without an arena, its pages given back on the way: the same bits."""
    (plain,) = FrontEngine.load(edge_dir, plan=plan)
    (saving,) = FrontEngine.load(edge_dir, plan=plan, low_memory=True, mapped=(edge_dir / "none",))
    for chunk in (np.arange(9), np.arange(3), np.array([7])):
        np.testing.assert_array_equal(plain.forward(chunk), saving.forward(chunk))
