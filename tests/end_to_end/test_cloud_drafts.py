"""Guesses of the cloud, through a real server: whatever they are worth, the tokens are the same."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cloud.drafting.head_drafter import CloudHeadDrafter
from cloud.drafting.head_session import HeadSession
from cloud.engine.back_engine import BackEngine
from cloud.engine.step_drafting import DraftState
from cloud.errors import StartError, WeightsError
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from protos.messages import DraftChoice, Drafts
from tests.cloud.drafting.heads import write_head
from tests.cloud.drafting.mtp_layers import KINDS, write_mtp
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer, running_server
from tests.end_to_end.test_drafting import PROMPTS, Reckless

SLOW_LINK = LinkShape.fixed(rtt_s=0.03, up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6)
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def bench(tiny: Any) -> ModelBench:
    llama: ModelBench = tiny("llama")
    return llama


@contextmanager
def client_of(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    host, port = server.address.split(":")
    with EmulatedLink(target=(host, int(port)), shape=SLOW_LINK) as link:
        address = f"{link.address[0]}:{link.address[1]}"
        with EdgeClient(bench.edge_bundle(2), address, prefill_chunk=16) as client:
            yield client


def ask(
    client: EdgeClient, prompt: str, draft: str, sampling: SamplingParams | None = None
) -> Completion:
    request = CompletionRequest(
        max_new_tokens=NEW_TOKENS, sampling=sampling or SamplingParams(), draft=draft
    )
    return client.complete(prompt, request)


SAMPLINGS = [
    SamplingParams(),
    SamplingParams(temperature=0.7, seed=5),
    SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.05, seed=6, logprobs=True),
]


@pytest.mark.parametrize("form", ["eagle", "eagle3", *KINDS])
def test_a_published_head_with_random_weights_changes_no_token(
    bench: ModelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    heard: list[Drafts] = []

    class Listening(Reckless):
        """Sends what it hears, however unlikely, and notes it."""

        def hear(self, drafts: Drafts) -> None:
            heard.append(drafts)
            super().hear(drafts)

    is_mtp = form in KINDS
    head = write_mtp(tmp_path, form) if is_mtp else write_head(tmp_path, form)
    with running_server(bench.cloud_bundle(), draft_head=head) as server:
        with client_of(bench, server) as client:
            plain = [ask(client, PROMPTS[at], "off", one) for at, one in enumerate(SAMPLINGS)]
            assert not heard
            monkeypatch.setattr("edge.generation.remote_parts.DraftSelector", Listening)
            for draft in ("cloud", "auto"):
                drafted = [ask(client, PROMPTS[at], draft, one) for at, one in enumerate(SAMPLINGS)]
                assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
        assert len(heard) > NEW_TOKENS
        assert server.server.facts["draft_head"] == ("mtp" if is_mtp else form)
        assert server.server.pool.used_bytes == 0


class Oracle:
    """A head drafter that knows the answers. Every so many tokens it says a wrong one."""

    answers: tuple[tuple[int, ...], ...] = ()

    form, num_bytes = "oracle", 0
    takes_steps = False

    def __init__(self, *, wrong_every: int) -> None:
        self._wrong_every = wrong_every

    def open(self, *, split: int, max_tokens: int, most: int) -> HeadSession | None:
        return _Knowing(most) if most else None

    def passes(
        self, states: Sequence[DraftState], *, step_s: float
    ) -> Generator[Sequence[Drafts | None]]:
        yield [self._of(state) for state in states if isinstance(state, _Knowing)]

    def _of(self, state: _Knowing) -> Drafts | None:
        state.has_run = False
        for answer in self.answers:
            if answer[: len(state.said)] == tuple(state.said):
                coming = answer[len(state.said) : len(state.said) + 5]
                choices = []
                for at, token_id in enumerate(coming, start=len(state.said)):
                    guess = 7 if at % self._wrong_every == 0 else token_id
                    choices.append((DraftChoice(guess, 0.8), DraftChoice(token_id, 0.1)))
                return Drafts(first_position=state.end, choices=tuple(choices), source=1)
        return None


class _Knowing(HeadSession):
    """What a session has said so far."""

    def __init__(self, most: int) -> None:
        self.most, self.end = most, 0
        self.said: list[int] = []
        self.has_run = False
        self._begun: list[int] = []

    @property
    def is_due(self) -> bool:
        return self.has_run

    def begin(self, first_position: int, *, is_ahead: bool = False) -> None:
        return

    def tap(self, states: torch.Tensor) -> None:
        return

    def ran(self, rows: Any) -> None:
        if rows.next_token is None:
            return
        is_first = not self._begun
        self._begun.append(rows.first_position)
        known = [] if is_first else list(rows.token_ids[1:])
        self.said.extend([*known, rows.next_token])
        self.end = rows.first_position + len(rows.token_ids) + 1
        self.has_run = True

    def close(self) -> None:
        return


def oracle_of(wrong_every: int) -> Callable[..., CloudHeadDrafter]:
    def load(folder: Path, engine: BackEngine, *, kv_bytes: int) -> CloudHeadDrafter:
        engine.capture([engine.num_layers])
        oracle: Any = Oracle(wrong_every=wrong_every)
        return oracle

    return load


@pytest.mark.parametrize("wrong_every", [1000, 3])
def test_good_guesses_of_the_cloud_save_round_trips(
    bench: ModelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_every: int
) -> None:
    monkeypatch.setattr("cloud.server.model_parts.load_head", oracle_of(wrong_every))
    with (
        running_server(bench.cloud_bundle(), draft_head=tmp_path) as server,
        client_of(bench, server) as client,
    ):
        plain = [ask(client, prompt, "off") for prompt in PROMPTS]
        Oracle.answers = tuple(tuple(one.token_ids) for one in plain)
        drafted = [ask(client, prompt, "cloud") for prompt in PROMPTS]
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    trips = sum(one.to_json()["round_trips"] for one in drafted)
    tokens = sum(len(one.token_ids) for one in plain)
    assert trips < tokens / 2.5


def test_a_server_without_a_head_sends_no_guesses_and_the_edge_goes_on(
    bench: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Drafts] = []
    monkeypatch.setattr(
        "edge.generation.drafting.DraftSelector.hear", lambda self, drafts: heard.append(drafts)
    )
    with running_server(bench.cloud_bundle()) as server, client_of(bench, server) as client:
        plain = ask(client, PROMPTS[0], "off")
        assert ask(client, PROMPTS[0], "cloud").token_ids == plain.token_ids
    assert not heard


def test_a_drafter_that_fails_costs_no_answer_and_is_not_asked_again(
    bench: ModelBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def broken(self: CloudHeadDrafter, states: object, *, step_s: float) -> None:
        asked.append(states)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(CloudHeadDrafter, "draft", broken)
    head = write_head(tmp_path, "eagle")
    with (
        running_server(bench.cloud_bundle(), draft_head=head) as server,
        client_of(bench, server) as client,
    ):
        plain = ask(client, PROMPTS[0], "off")
        assert ask(client, PROMPTS[0], "cloud").token_ids == plain.token_ids
        assert len(asked) == 1
        drafter = server.server.admission.models.first.head
        assert drafter is not None
        assert drafter._pool.used_bytes == 0


def test_a_head_of_another_model_is_refused_when_the_server_starts(
    bench: ModelBench, tmp_path: Path
) -> None:
    other = write_head(tmp_path / "other", "eagle", width=32)
    with (
        pytest.raises(WeightsError, match="width 32"),
        running_server(bench.cloud_bundle(), draft_head=other),
    ):
        pass
    bare = {name: one for name, one in _tensors().items() if name != "embed_tokens.weight"}
    without = write_head(tmp_path / "without", "eagle", tensors=bare)
    with (
        pytest.raises(StartError, match="embed_tokens"),
        running_server(bench.cloud_bundle(2, back_start=2), draft_head=without),
    ):
        pass


def _tensors() -> dict[str, torch.Tensor]:
    from tests.cloud.drafting.heads import head_tensors

    return head_tensors("eagle", 64, 320)
