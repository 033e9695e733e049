"""Drafting across a real server and a slow link: the same tokens, in fewer round trips."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.completion import CompletionRequest
from edge.draft.drafter import Guess
from edge.draft.drafting import Chain, Drafting
from edge.draft.ngram import NgramDrafter
from edge.errors import InputError
from edge.report import Completion
from hwprofiles.emulator import EmulatedLink
from hwprofiles.link_shape import LinkShape
from optimizer.bundle import write_manifest
from tests.conftest import ModelBench
from tests.end_to_end.servers import running_server

SLOW_LINK = LinkShape.fixed(rtt_s=0.03, up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6)
PROMPTS = (
    "one two three, one two three, one two three, one two",
    "the cat and the dog and the cat and the bird and the",
    "aaaaabaaaaabaaaaab",
)


@pytest.fixture(scope="module")
def bench(tiny: Any) -> ModelBench:
    llama: ModelBench = tiny("llama")
    return llama


@pytest.fixture(scope="module")
def client(bench: ModelBench) -> Iterator[EdgeClient]:
    with running_server(bench.cloud_bundle()) as server:
        host, port = server.address.split(":")
        with EmulatedLink(target=(host, int(port)), shape=SLOW_LINK) as link:
            address = f"{link.address[0]}:{link.address[1]}"
            with EdgeClient(bench.edge_bundle(2), address, prefill_chunk=16) as client:
                yield client


def ask(client: EdgeClient, prompt: str, draft: str, sampling: SamplingParams) -> Completion:
    request = CompletionRequest(max_new_tokens=70, sampling=sampling, draft=draft)
    return client.complete(prompt, request)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=0.3, seed=5),
        SamplingParams(temperature=0.3, top_p=0.9, repetition_penalty=1.05, seed=6, logprobs=True),
    ],
    ids=["greedy", "sampled", "penalized"],
)
def test_drafting_changes_nothing_but_the_number_of_round_trips(
    client: EdgeClient, sampling: SamplingParams
) -> None:
    num_trips = dict.fromkeys(("off", "ngram"), 0)
    for prompt in PROMPTS:
        plain = ask(client, prompt, "off", sampling)
        drafted = ask(client, prompt, "ngram", sampling)
        assert drafted.token_ids == plain.token_ids
        assert drafted.text == plain.text
        assert drafted.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
        for draft, completion in (("off", plain), ("ngram", drafted)):
            num_trips[draft] += completion.to_json()["round_trips"]
    assert num_trips["ngram"] < num_trips["off"]


class Reckless(Drafting):
    """Sends three guesses a frame, and frames ahead whenever there is one to begin with."""

    def extend(self, chain: Chain) -> Guess | None:
        guess, reach = self._next(chain)
        return None if guess is None or len(chain.guesses) >= 3 else self._add(chain, guess, reach)

    def flies(self) -> bool:
        return True

    def begin_ahead(self, before: Chain) -> Chain | None:
        return None if before.next_guess is None else Chain()

    extend_ahead = extend


def test_frames_sent_ahead_stand_or_fall_and_change_no_token(
    client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [ask(client, prompt, "off", SamplingParams()) for prompt in PROMPTS]
    monkeypatch.setattr(
        client._draft_choice,
        "drafting",
        lambda name: Reckless(NgramDrafter(), clock=time.monotonic),
    )
    drafted = [ask(client, prompt, "ngram", SamplingParams()) for prompt in PROMPTS]
    assert [run.token_ids for run in drafted] == [run.token_ids for run in plain]
    figures = [run.to_json()["drafts"] for run in drafted]
    assert sum(figure["frames_ahead"] for figure in figures) > 0
    assert sum(figure["frames_void"] for figure in figures) > 0


def test_a_drafter_that_is_not_there_is_refused_before_anything_is_sent(client: EdgeClient) -> None:
    with pytest.raises(InputError, match="train-draft"):
        client.start("hello", CompletionRequest(draft="head"))
    with pytest.raises(InputError, match="no drafter 'magic'"):
        client.start("hello", CompletionRequest(draft="magic"))


def test_a_small_model_drafts_and_the_whole_model_itself_drafts_perfectly(
    bench: ModelBench,
) -> None:
    """The draft model here is the very model, whole on the edge: nearly every guess is right."""
    with running_server(bench.cloud_bundle()) as server:
        host, port = server.address.split(":")
        with (
            EmulatedLink(target=(host, int(port)), shape=SLOW_LINK) as link,
            EdgeClient(
                bench.edge_bundle(2),
                f"{link.address[0]}:{link.address[1]}",
                prefill_chunk=16,
                draft_model=bench.edge_bundle(bench.num_layers),
            ) as client,
        ):
            plain = ask(client, PROMPTS[0], "off", SamplingParams())
            drafted = ask(client, PROMPTS[0], "model", SamplingParams())
    assert drafted.token_ids == plain.token_ids
    figures = drafted.to_json()["drafts"]
    assert figures["accepted"] > 0.9 * figures["sent"] > 0


def test_a_draft_model_must_lie_on_the_edge_and_know_the_same_tokens(
    bench: ModelBench, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="wholly on the edge"):
        EdgeClient(bench.edge_bundle(2), "127.0.0.1:1", draft_model=bench.edge_bundle(1))
    other = tmp_path / "other"
    shutil.copytree(bench.edge_bundle(bench.num_layers), other)
    path = other / "edge" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    write_manifest(other)
    with pytest.raises(InputError, match="tokenizer is another one"):
        EdgeClient(bench.edge_bundle(2), "127.0.0.1:1", draft_model=other)
