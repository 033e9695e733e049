"""Squeezed steps of both kinds of layers: what they equal, and what they must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cloud.engine.back_engine import BackEngine
from cloud.kernel import library as native
from cloud.squeezed.fixed_context import Squeezing
from tests.cloud.squeezed.engines import PROMPT, ROWS, SqueezedSession, make_engine, make_pool

ANSWER = ROWS - PROMPT
RATIO = 0.25


@pytest.fixture(scope="module", params=["torch", "compiled"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BackEngine:
    if request.param == "compiled" and native.load() is None:
        pytest.skip("the kernel was not built, or no AVX2")
    made = make_engine(tmp_path_factory.mktemp("back"), int8=request.param == "compiled")
    assert made.is_native is (request.param == "compiled")
    assert list(made.squeezable_layers) == [0, 1]
    return made


def answer(engine: BackEngine, squeezing: Squeezing | None, *prompt: int) -> Tensor:
    """The logits of the rows behind a prompt that came in frames of so many rows."""
    session = SqueezedSession(engine, make_pool(engine), squeezing)
    session.run(*prompt)
    return session.run(*[1] * ANSWER)


def squeezing_of(engine: BackEngine, ratio: float = RATIO) -> Squeezing:
    return Squeezing(ratio, engine.squeezable_layers)


@pytest.fixture(scope="module")
def undisturbed(engine: BackEngine) -> Tensor:
    return answer(engine, squeezing_of(engine), 600, 600)


def same(engine: BackEngine, got: Tensor, expected: Tensor) -> bool:
    """Equal bits in the kernel; torch may sum another number of rows in another order."""
    if engine.is_native:
        return torch.equal(got, expected)
    return bool(torch.allclose(got, expected, rtol=1e-3, atol=1e-4))


def test_reading_all_keys_is_exact_attention(engine: BackEngine) -> None:
    squeezing = squeezing_of(engine, 1.0)
    got = answer(engine, squeezing, 600, 600)
    assert same(engine, got, answer(engine, None, 600, 600))
    assert squeezing.read_share == 1


def test_fewer_keys_are_read_and_the_numbers_are_others(
    engine: BackEngine, undisturbed: Tensor
) -> None:
    squeezing = squeezing_of(engine)
    got = answer(engine, squeezing, 600, 600)
    assert torch.equal(got, undisturbed)
    assert RATIO / 2 < squeezing.read_share < 2 * RATIO
    assert squeezing.num_seen == ANSWER * 1024 * 2 * 2  # layers, key-value heads
    assert not torch.equal(got, answer(engine, None, 600, 600))


def test_the_kernel_selects_what_torch_selects(
    engine: BackEngine, undisturbed: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not engine.is_native:
        pytest.skip("compares the compiled layers with torch's")
    exact = answer(engine, None, 600, 600)
    kernels, torchs = squeezing_of(engine), squeezing_of(engine)
    answer(engine, kernels, 600, 600)
    monkeypatch.setattr(engine, "_native", None)
    got = answer(engine, torchs, 600, 600)
    assert abs(torchs.num_read - kernels.num_read) < 0.01 * kernels.num_read
    assert (got - undisturbed).norm() < 0.3 * (exact - undisturbed).norm()


@pytest.mark.parametrize("frames", [(512, 512, 176), (100,) * 12, (PROMPT,)])
def test_it_does_not_matter_how_the_prompt_is_cut(
    engine: BackEngine, undisturbed: Tensor, frames: tuple[int, ...]
) -> None:
    assert same(engine, answer(engine, squeezing_of(engine), *frames), undisturbed)


def test_a_replay_in_one_frame_gives_the_same(engine: BackEngine, undisturbed: Tensor) -> None:
    """Its rows behind the prompt come with the prompt's own."""
    session = SqueezedSession(engine, make_pool(engine), squeezing_of(engine))
    assert same(engine, session.run(ROWS)[PROMPT:], undisturbed)


def test_refused_drafts_leave_nothing_behind(engine: BackEngine, undisturbed: Tensor) -> None:
    session = SqueezedSession(engine, make_pool(engine), squeezing_of(engine))
    session.run(PROMPT)
    session.run(9)
    session.lease.rollback(PROMPT + 2)
    got = session.run(4, *[1] * (ANSWER - 6))
    assert same(engine, got, undisturbed[2:])


def test_a_prompt_that_goes_back_is_indexed_anew(engine: BackEngine, undisturbed: Tensor) -> None:
    session = SqueezedSession(engine, make_pool(engine), squeezing_of(engine))
    session.run(1100)
    session.lease.rollback(450)
    session.run(PROMPT - 450)
    assert same(engine, session.run(*[1] * ANSWER), undisturbed)


@pytest.mark.parametrize("held", [400, 512, 900, 1024, 1184])
def test_a_session_with_a_kept_beginning_equals_the_one_that_ran_it(
    engine: BackEngine, undisturbed: Tensor, held: int
) -> None:
    pool, squeezing = make_pool(engine), squeezing_of(engine)
    first = SqueezedSession(engine, pool, squeezing)
    first.run(held)
    assert first.context is not None
    indexes = first.context.held(held)
    assert indexes is not None
    first.run(PROMPT - held)
    shared = pool.share(first.lease, held)
    second = SqueezedSession(engine, pool, squeezing, shared=shared, held=indexes)
    second.run(PROMPT - held)
    assert same(engine, second.run(*[1] * ANSWER), undisturbed)


def test_a_longer_prompt_goes_on_from_a_shorter_ones_beginning(engine: BackEngine) -> None:
    """The shorter one has no segment of its own to select from, and indexes one all the same."""
    pool, squeezing = make_pool(engine), squeezing_of(engine)
    first = SqueezedSession(engine, pool, squeezing, prompt=528)
    first.run(528)
    assert first.context is not None
    assert first.context.num_tokens == 0
    indexes = first.context.held(528)
    assert indexes is not None
    assert len(indexes) == 1
    shared = pool.share(first.lease, 528)
    second = SqueezedSession(engine, pool, squeezing, shared=shared, held=indexes)
    second.run(PROMPT - 528)
    got = second.run(*[1] * ANSWER)
    assert same(engine, got, answer(engine, squeezing_of(engine), 600, 600))


def test_batch_mates_change_nothing(engine: BackEngine, undisturbed: Tensor) -> None:
    """Neither those that squeeze, nor those that do not."""
    pool, squeezing = make_pool(engine), squeezing_of(engine)
    sessions = [
        SqueezedSession(engine, pool, squeezing),
        SqueezedSession(engine, pool, None),
        SqueezedSession(engine, pool, squeezing, prompt=700),
    ]
    for session in sessions:
        session.run(600, 600)
    rows: list[list[Tensor]] = [[], [], []]
    for _ in range(ANSWER):
        logits = engine.forward([session.entry(1) for session in sessions])
        for kept, one in zip(rows, logits, strict=True):
            kept.append(one)
    assert same(engine, torch.cat(rows[0]), undisturbed)
    assert same(engine, torch.cat(rows[1]), answer(engine, None, 600, 600))


def test_a_short_prompt_has_the_bits_of_a_server_that_does_not_squeeze(engine: BackEngine) -> None:
    got, expected = (
        SqueezedSession(engine, make_pool(engine), squeezing, prompt=560).run(560, *[1] * 8)
        for squeezing in (squeezing_of(engine), None)
    )
    assert torch.equal(got, expected)
