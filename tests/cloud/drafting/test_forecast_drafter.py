"""Guesses on forecast rows are the model's own where the rows are right, and leave no trace."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cloud.drafting.forecast_drafter import FORECAST_SOURCE, ForecastDrafter
from cloud.drafting.forecast_session import ForecastSession
from cloud.drafting.session_drafts import RanRows
from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kv.pool import KvLease, KvPool
from codec.arrays import F32
from codec.ladder import Ladder
from protos.limits import MAX_DRAFT_SOURCES
from protos.messages import DraftChoice, Drafts
from tests.cloud.tiny_bundle import save_back
from tests.tiny_models import make_tiny_model

SPLIT = 1
PROMPT = (3, 141, 59, 26, 53, 58, 97, 93)


class Bench:
    """A tiny model, its back, and what the whole model says."""

    def __init__(self, folder: Path) -> None:
        self.model = make_tiny_model("llama", folder)
        save_back(self.model, folder / "cloud")
        self.engine = BackEngine(load_back(folder / "cloud", first_layer=SPLIT))
        self.pool = KvPool(self.engine.kv_shape, limit_bytes=1 << 26)

    def rows(self, ids: Sequence[int]) -> F32:
        """The rows [T, D] that enter the split."""
        found: list[torch.Tensor] = []
        layer = self.model.model.layers[SPLIT]
        hook = layer.register_forward_pre_hook(
            lambda _m, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        with torch.inference_mode():
            self.model(torch.tensor([list(ids)]), use_cache=False)
        hook.remove()
        rows: F32 = found[0][0].numpy().copy()
        return rows

    def onward(self, ids: Sequence[int], count: int) -> list[int]:
        """The tokens that follow, greedily."""
        ids = list(ids)
        for _ in range(count):
            with torch.inference_mode():
                logits = self.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
        return ids[-count:]

    def logits(self, lease: KvLease, rows: F32) -> torch.Tensor:
        entry = BatchEntry(lease=lease, rows=torch.from_numpy(rows), num_logits=len(rows))
        return self.engine.forward([entry])[0]


class Exact:
    """A forecast that is never wrong: it computes what the device would, from the tokens so far."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._tokens: dict[bytes, tuple[int, ...]] = {}

    def know(self, ids: Sequence[int]) -> F32:
        row = self._bench.rows(ids)[-1]
        self._tokens[row.tobytes()] = tuple(ids)
        return row

    def rows(self, token_ids: Sequence[int], before: F32) -> F32:
        tokens = self._tokens[np.ascontiguousarray(before).tobytes()]
        found = []
        for token_id in token_ids:
            tokens = (*tokens, token_id)
            found.append(self.know(tokens))
        return np.stack(found)


class Wild:
    """A forecast of the same value in every channel."""

    def __init__(self, value: float) -> None:
        self._value = value

    def rows(self, token_ids: Sequence[int], before: F32) -> F32:
        return np.full((len(token_ids), len(before)), self._value, dtype=np.float32)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def any_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny random model is sure of nothing; it guesses all the same."""
    monkeypatch.setattr("cloud.drafting.forecast_drafter.LEAST_REACH_OF_A_STEP", 0.0)


ANY_REACH = pytest.mark.usefixtures("any_reach")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    transformers.logging.disable_progress_bar()
    return Bench(tmp_path_factory.mktemp("forecast"))


class Told:
    """A session whose prompt has run and whose answer is the model's next token.

    pause_s: between the answer before that and its last frame.
    """

    def __init__(
        self,
        bench: Bench,
        forecast: Any = None,
        *,
        most: int = 5,
        room: int = 64,
        ids: Any = PROMPT,
        pause_s: float = 1.0,
    ) -> None:
        self.bench = bench
        self.clock = Clock()
        self.exact = Exact(bench)
        self.ids = list(ids)
        self.lease = bench.pool.lease(split=SPLIT, max_tokens=room)
        self.exact_forecast: Any = self.exact
        made_by: Any = forecast or self.exact_forecast
        self.state = ForecastSession(self.lease, made_by, most, clock=self.clock)
        self.answer_with(self.ids[:-1], first=0)
        self.clock.now += pause_s
        self.answer_with(list(ids), first=len(ids) - 1)

    def answer_with(self, ids: Sequence[int], first: int) -> None:
        """A frame of the tokens from `first` on ran, and the model's own next token answers it."""
        self.state.begin(first)
        rows = self.bench.rows(ids)[first:]
        self.bench.logits(self.lease, rows)
        self.exact.know(ids)
        (token,) = self.bench.onward(ids, 1)
        self.state.ran(RanRows(first, tuple(ids[first:]), token, rows[-1]))
        self.ids = [*ids, token]


def drafted(bench: Bench, *told: Told) -> list[list[Drafts | None]]:
    """What every pass brought. A pass takes no time here."""
    drafter = ForecastDrafter(bench.engine, clock=Clock())
    with closing(drafter.passes([one.state for one in told], step_s=0.01)) as passes:
        return [list(found) for found in passes]


def ids_of(drafts: Drafts | None) -> list[int]:
    return [] if drafts is None else [choices[0].token_id for choices in drafts.choices]


@ANY_REACH
def test_right_rows_give_the_models_own_tokens_one_more_a_pass(bench: Bench) -> None:
    told = Told(bench)
    wanted = bench.onward(told.ids, 5)
    found = [one for (one,) in drafted(bench, told)]
    assert [ids_of(one) for one in found] == [wanted[:count] for count in range(1, 6)]
    for one in found:
        assert one is not None
        assert (one.first_position, one.source) == (len(told.ids), FORECAST_SOURCE)
        assert all(0 < choice.confidence <= 1 for choices in one.choices for choice in choices)


def test_nothing_of_it_stays_in_the_sessions_cache(bench: Bench) -> None:
    told, plain = Told(bench), Told(bench)
    drafted(bench, told)
    assert told.lease.length == plain.lease.length == len(PROMPT)
    row = bench.rows(told.ids)[-1:]
    drafted_logits, plain_logits = bench.logits(told.lease, row), bench.logits(plain.lease, row)
    assert torch.equal(drafted_logits, plain_logits)


@ANY_REACH
def test_guesses_that_an_answer_confirms_stand_and_others_go(bench: Bench) -> None:
    told = Told(bench)
    wanted = bench.onward(told.ids, 8)
    drafted(bench, told)
    told.answer_with(told.ids, first=len(told.ids) - 1)  # answers with the first guess
    assert [choices[0].token_id for choices in told.state.chain] == wanted[1:5]
    first, *_ = drafted(bench, told)
    assert ids_of(first[0]) == wanted[1:6]  # one more than stood
    other = [*told.ids[:-1], (told.ids[-1] + 1) % 300]
    told.state.begin(len(other) - 1)
    told.state.ran(RanRows(len(other) - 1, (other[-2],), other[-1], told.exact.know(other[:-1])))
    assert not told.state.chain


def test_guesses_behind_a_wrong_one_go_though_a_later_token_was_guessed(bench: Bench) -> None:
    """The answer to a frame with drafts of other sources tells several tokens at once."""
    told = Told(bench)
    at, row = len(told.ids) - 1, told.state.row
    guesses = [(DraftChoice(token, 0.9),) for token in (11, 12, 13, 14, 15)]

    def left(accepted: tuple[int, ...], next_token: int) -> list[int]:
        told.state.end, told.state.chain = at + 1, list(guesses)
        told.state.begin(at)
        told.state.ran(RanRows(at, (told.ids[-1], *accepted), next_token, row))
        return [choices[0].token_id for choices in told.state.chain]

    assert left((11, 12), 13) == [14, 15]
    assert left((11, 99), 13) == []
    assert left((99,), 12) == []
    assert left((), 11) == [12, 13, 14, 15]
    assert left((11, 12, 13, 14), 15) == []
    assert left((11, 12, 13, 14, 15), 16) == []


@ANY_REACH
def test_a_wrong_guess_is_corrected_and_what_stood_on_it_goes(bench: Bench) -> None:
    told = Told(bench)
    wanted = bench.onward(told.ids, 5)
    drafted(bench, told)
    (wrong, *_), *rest = told.state.chain[1:]
    told.state.chain[1:] = [(wrong._replace(token_id=(wanted[1] + 1) % 300),), *rest]
    told.state.most = 6
    first, second, *_ = drafted(bench, told)
    assert ids_of(first[0]) == wanted[:2]
    assert ids_of(second[0]) == wanted[:3]


def test_sessions_of_one_pass_guess_as_if_alone(bench: Bench) -> None:
    prompts = [PROMPT, PROMPT[2:], (7, 7, 200)]
    alone = [drafted(bench, Told(bench, ids=ids)) for ids in prompts]
    together = drafted(bench, *[Told(bench, ids=ids) for ids in prompts])
    for at, passes in enumerate(alone):
        heard = [ids_of(found[at]) for found in together if found[at] is not None]
        assert heard == [ids_of(found[0]) for found in passes]


@ANY_REACH
def test_passes_that_begin_anew_send_no_more_messages_than_an_edge_takes(
    bench: Bench,
) -> None:
    told = Told(bench, most=100)
    drafter = ForecastDrafter(bench.engine)
    messages = 0
    for _ in range(2 * MAX_DRAFT_SOURCES):
        with closing(drafter.passes([told.state], step_s=0.01)) as passes:
            messages += sum(found is not None for (found,) in islice(passes, 2))
    assert messages == MAX_DRAFT_SOURCES
    told.answer_with(told.ids, first=len(told.ids) - 1)
    assert drafted(bench, told)


def test_it_stops_where_the_next_frame_is_due(bench: Bench) -> None:
    told = Told(bench, pause_s=0.055)

    def passing() -> float:
        told.clock.now += 0.01  # a pass asks twice: it takes 0.02 s
        return told.clock.now

    drafter = ForecastDrafter(bench.engine, clock=passing)
    with closing(drafter.passes([told.state], step_s=0.01)) as passes:
        assert len(list(passes)) == 2


def test_on_a_link_as_short_as_a_pass_or_not_known_yet_it_guesses_nothing(bench: Bench) -> None:
    short = Told(bench, pause_s=0.02)  # a pass is held for a step: 0.01 s
    assert drafted(bench, short) == []
    unknown = Told(bench)
    unknown.state = ForecastSession(unknown.lease, unknown.exact_forecast, 5, clock=unknown.clock)
    unknown.answer_with(unknown.ids, first=len(unknown.ids) - 1)
    assert unknown.state.is_due
    assert drafted(bench, unknown) == []


def test_one_slow_pass_does_not_end_the_guessing(bench: Bench) -> None:
    told = Told(bench, pause_s=0.05)
    ticks = iter([0.0, 10.0, *np.arange(20, 30, 0.01).tolist()])
    drafter = ForecastDrafter(bench.engine, clock=lambda: next(ticks))
    with closing(drafter.passes([told.state], step_s=0.01)) as passes:
        assert next(passes)[0] is not None  # takes 10 s
    told.clock.now += 0.05
    told.answer_with(told.ids, first=len(told.ids) - 1)
    with closing(drafter.passes([told.state], step_s=0.01)) as passes:
        assert next(passes)[0] is not None


def test_one_long_pause_counts_for_little(bench: Bench) -> None:
    told = Told(bench, pause_s=0.05)
    told.clock.now += 60.0
    told.answer_with(told.ids, first=len(told.ids) - 1)  # 0.7 * 0.05 + 0.3 * 3 * 0.05 = 0.08
    assert told.state.has_time(0.03)
    assert not told.state.has_time(0.04)


def test_a_frame_ahead_of_its_answer_says_nothing_of_the_pause(bench: Bench) -> None:
    told = Told(bench, pause_s=0.05)
    told.clock.now += 0.001
    told.state.begin(len(told.ids) - 1, is_ahead=True)
    assert not told.state.is_due
    told.state.ran(RanRows(len(told.ids) - 1, (told.ids[-1],), 5, told.exact.know(told.ids)))
    assert told.state.has_time(0.019)  # as before: of 0.05


def test_a_device_that_sends_no_guesses_hears_few(bench: Bench) -> None:
    told = Told(bench, room=200)
    at = len(told.ids)
    due = []
    for _ in range(40):
        told.state.begin(at)
        told.state.ran(RanRows(at, (5,), 5, told.state.row))
        due.append(told.state.is_due)
        at += 1
    assert all(due[:14])
    assert sum(due[14:]) == 2
    told.state.begin(at, is_ahead=True)
    told.state.ran(RanRows(at, (5,), 5, told.state.row))
    assert told.state.is_due


@ANY_REACH
def test_it_guesses_no_further_than_there_is_room(bench: Bench) -> None:
    told = Told(bench, room=len(PROMPT) + 2)
    found = drafted(bench, told)
    assert [len(ids_of(one)) for (one,) in found] == [1, 2]
    full = Told(bench, room=len(PROMPT))
    assert drafted(bench, full) == []
    assert full.lease.length == len(PROMPT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_rows_out_of_range_bring_no_guess_and_spoil_no_session(bench: Bench, value: float) -> None:
    told, whole = Told(bench, Wild(value)), Told(bench)
    found = drafted(bench, told, whole)
    assert all(one is None for one, _ in found)
    assert any(one is not None for _, one in found)
    assert not told.lease.overflowed
    assert told.lease.length == len(PROMPT)
    assert bench.logits(told.lease, bench.rows(told.ids)[-1:]).isfinite().all()


def test_an_interrupted_pass_leaves_the_cache_as_it_was(bench: Bench) -> None:
    told = Told(bench)
    drafter = ForecastDrafter(bench.engine)
    with closing(drafter.passes([told.state], step_s=0.01)) as passes:
        next(passes)
        assert told.lease.length > len(PROMPT)
    assert told.lease.length == len(PROMPT)


def test_it_needs_tables_that_forecast_rows_and_an_edge_that_listens(bench: Bench) -> None:
    drafter = ForecastDrafter(bench.engine)
    lease = bench.pool.lease(split=SPLIT, max_tokens=16)
    assert drafter.open(lease, Ladder.lossless(64), most=5) is None
    forecasting: Any = type("Forecasting", (), {"forecast": Wild(0.0)})()
    assert drafter.open(lease, forecasting, most=0) is None
    session = drafter.open(lease, forecasting, most=7)
    assert session is not None
    assert session.most == 7


def test_a_closed_session_or_one_whose_frame_brought_ids_alone_is_not_drafted_for(
    bench: Bench,
) -> None:
    told = Told(bench)
    told.state.begin(len(told.ids) - 1)
    told.state.ran(RanRows(len(told.ids) - 1, (told.ids[-1],), 5, None))
    assert not told.state.is_due
    closed = Told(bench)
    closed.state.close()
    assert not closed.state.is_due
    assert drafted(bench, closed) == []
