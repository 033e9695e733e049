"""From a request to a generation: levels, seeds after a shift, and what a server is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from decoding.params import SamplingParams
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.context import ShiftingGeneration
from edge.generation.factory import GenerationFactory
from edge.generation.kv_shipment import LeftBehind, OpenPart
from edge.generation.local import LocalGeneration
from edge.generation.loop import RemoteGeneration
from edge.generation.prefix_memory import MAX_BYTES
from edge.generation.tables_choice import ChosenTables, TablesChoice
from edge.generation.token_source import TokenSource
from optimizer.policy.power import FULL_EFFORT
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open
from tests.edge.draft.saying import Saying
from tests.edge.fakes import FakeFront, FakeKv, FakeStream, FakeTransport
from tests.edge.generation.remote import SHA, open_request

LADDER: Any = SimpleNamespace(
    names=("q4", "q2", "q1"), extra_names=("lossless",), tables_sha256=SHA, can_recall=False
)
MAX_TOKENS = 20


class Drafters:
    """Remembers which drafter was asked for."""

    effort = FULL_EFFORT

    def __init__(self) -> None:
        self.asked: list[str] = []

    def check(self, name: str) -> None:
        if name == "head":
            raise InputError("no head here")

    def drafter(self, name: str, acceptance: object, *, rows_fit: bool = True) -> Saying | None:
        self.asked.append(name)
        return None if name == "off" else Saying()


def factory(
    *, level: str = "q2", edge_is_whole: bool = False, recover_s: float = 60.0, **changes: Any
) -> GenerationFactory:
    model = SimpleNamespace(
        sha256=SHA, geometry=SimpleNamespace(hidden_size=4, vocab_size=50, num_layers=6)
    )
    plan: Any = SimpleNamespace(
        level=level,
        edge_is_whole=edge_is_whole,
        max_tokens=MAX_TOKENS,
        model=model,
        partition=SimpleNamespace(split=3),
        splits=(3,),
        back_start=3,
        prefill="edge",
    )
    drafters: Any = Drafters()
    return GenerationFactory(
        plan=plan,
        transports=[FakeTransport()],
        drafters=drafters,
        chunk_tokens=4,
        adaptive_chunks=True,
        retry_policy=RetryPolicy(recover_s=recover_s),
        clock=Clock(),
        **{"ladders": {3: LADDER}, **changes},
    )


def generation(made: GenerationFactory, request: CompletionRequest, total: int) -> TokenSource:
    front: Any = FakeFront()
    return made.generation(front, request, num_prompt_tokens=2, max_new_tokens=total - 2)


@pytest.mark.parametrize(
    ("wanted", "levels"),
    [
        ("auto", ("q2", "q1")),
        ("0", ("q4",)),
        ("q1", ("q1",)),
        ("lossless", ("lossless",)),
    ],
)
def test_a_level_is_the_plans_or_a_name_or_a_number(wanted: str, levels: tuple[str, ...]) -> None:
    assert factory()._remote.levels(wanted, 3) == levels


def test_a_plan_whose_level_is_no_rung_stays_at_it() -> None:
    assert factory(level="lossless")._remote.levels("auto", 3) == ("lossless",)


@pytest.mark.parametrize("wanted", ["3", "q9", ""])
def test_an_unknown_level_is_refused_with_those_there_are(wanted: str) -> None:
    with pytest.raises(InputError, match="this bundle has q4, q2, q1"):
        factory().check(CompletionRequest(level=wanted))


def left_behind(address: str = "fake:1") -> tuple[LeftBehind, FakeStream]:
    transport = FakeTransport()
    stream = transport.open(open_request(split=3), 1.0)
    part = OpenPart("older", stream, address)
    return LeftBehind(part=part, kv=FakeKv(range(1, 3), [7] * 9), num_tokens=9), stream


@pytest.mark.parametrize(
    ("level", "sent"), [("auto", "kv8"), ("q1", "kv8"), ("lossless", "lossless")]
)
def test_keys_and_values_go_at_a_level_like_the_rows(level: str, sent: str) -> None:
    left, stream = left_behind()
    request = CompletionRequest(level=level, move_by="kv")
    shipment = factory()._remote._shipment(request, 1, left)
    assert shipment is not None
    assert (shipment.level, shipment.num_tokens) == (sent, 9)
    assert not stream.is_ended


@pytest.mark.parametrize(
    ("move_by", "address"), [("ids", "fake:1"), ("auto", "fake:1"), ("kv", "another:1")]
)
def test_where_ids_are_sent_the_older_session_ends_first(move_by: str, address: str) -> None:
    """By wish, because nothing is measured, or because the session is at another server."""
    left, stream = left_behind(address)
    request = CompletionRequest(move_by=move_by)
    assert factory()._remote._shipment(request, 1, left) is None
    assert stream.is_ended


def test_what_was_measured_decides_how_the_split_moves() -> None:
    left, stream = left_behind()
    made = factory()._remote
    made._measured.sent(10_000, 0.1)
    made._measured.computed(1.0, num_rows=10, num_layers=6)
    assert made._shipment(CompletionRequest(), 1, left) is not None
    made._measured.sent(10_000_000, 0.001)
    for _ in range(40):
        made._measured.computed(1e-9, num_rows=10, num_layers=6)
    assert made._shipment(CompletionRequest(), 1, left) is None
    assert stream.is_ended


def test_an_unknown_way_to_move_is_refused() -> None:
    with pytest.raises(InputError, match="move by 'fast': one of auto, kv, ids"):
        CompletionRequest(move_by="fast")


def test_a_drafter_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no head here"):
        factory().check(CompletionRequest(draft="head"))


def test_where_the_tokens_come_from_depends_on_plan_and_context() -> None:
    shift = CompletionRequest(context="shift")
    assert isinstance(generation(factory(), CompletionRequest(), MAX_TOKENS), RemoteGeneration)
    assert isinstance(generation(factory(), shift, MAX_TOKENS), RemoteGeneration)
    assert isinstance(generation(factory(), shift, MAX_TOKENS + 1), ShiftingGeneration)
    whole = factory(edge_is_whole=True)
    assert isinstance(generation(whole, CompletionRequest(), MAX_TOKENS), LocalGeneration)


def test_every_part_after_a_shift_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = factory()
    seeds: list[int] = []

    def part(remote: object, front: object, request: CompletionRequest, *lengths: int) -> Any:
        seeds.append(request.sampling.seed)

    monkeypatch.setattr(made, "_part", part)
    last = (1 << 64) - 1
    request = CompletionRequest(context="shift", sampling=SamplingParams(seed=last))
    source: Any = generation(made, request, 3 * MAX_TOKENS)
    for index in range(3):
        source._generation_of(index, MAX_TOKENS, 2)
    assert seeds == [last, 0, 1]


def test_tables_that_alone_have_the_level_are_the_chosen_ones() -> None:
    plain: Any = SimpleNamespace(
        names=("lossless",), extra_names=(), tables_sha256=SHA, can_recall=False
    )
    made = factory(level="lossless", ladders={3: plain}, more_ladders={"code": {3: LADDER}})
    made.check(CompletionRequest(level="q2"))
    source: Any = generation(made, CompletionRequest(level="q2"), 17)
    assert isinstance(source, ChosenTables)
    choice, _ = source._choose([1, 2])
    assert choice == TablesChoice(name="code")
    part: Any = source._part_of("code", FakeFront())
    assert part._selector.level == "q2"
    with pytest.raises(InputError, match="no level 'q9'"):
        made.check(CompletionRequest(level="q9"))
    plan = generation(made, CompletionRequest(), 17)
    assert isinstance(plan, ChosenTables)  # both have lossless: it costs the same
    assert plan._choose([1, 2])[0] == TablesChoice(name="default")


def told_by(made: GenerationFactory, request: CompletionRequest | None = None) -> Open:
    """What a server is told of a generation of 17 tokens."""
    source: Any = generation(made, request or CompletionRequest(), 17)
    opening: Open = source._connector._request
    return opening


def test_a_server_is_told_the_model_the_split_and_how_long_to_hold_the_session() -> None:
    request = CompletionRequest(sampling=SamplingParams(temperature=0.5))
    told = told_by(factory(recover_s=12.0), request)
    assert (told.model_sha256, told.split, told.hidden_size) == (SHA, 3, 4)
    assert (told.max_tokens, told.sampling, told.resume_s) == (17, request.sampling, 12.0)
    other = told_by(factory(recover_s=12.0), request)
    assert other.session_id != told.session_id


def test_a_device_names_prompts_with_a_secret_of_its_own_unless_it_is_to_share() -> None:
    made, other = factory(), factory()
    told = [told_by(one) for one in (made, made, other)]
    assert told[0].prefix_salt == told[1].prefix_salt
    assert told[0].prefix_salt != told[2].prefix_salt
    assert told_by(factory(share_prefixes=True)).prefix_salt == b""


def test_the_splits_together_remember_as_many_bytes_of_prompts_as_one() -> None:
    def remembered(ladders: dict[int, Any]) -> int:
        parts = factory(ladders=ladders)._remote
        return sum(parts._settings[split].prefixes.max_bytes for split in ladders)

    assert remembered({3: LADDER}) == MAX_BYTES
    assert MAX_BYTES - 2 < remembered({1: LADDER, 2: LADDER, 3: LADDER}) <= MAX_BYTES
