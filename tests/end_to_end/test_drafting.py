"""Drafting across a real server and a slow link: the same tokens, in fewer round trips."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.draft.base import Guess
from edge.draft.head import FACTS_NAME, HEAD_NAME
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.draft_run import DraftRun
from edge.generation.drafting import DraftSelector
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.artifacts.bundle import write_manifest
from optimizer.export.calibration.calibrate import calibrate
from optimizer.export.draft_head.head import DraftHead, HeadShape, output_embedding
from optimizer.export.draft_head.onnx_export import export_head
from optimizer.export.layers.layered_model import LayeredModel
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


class Reckless(DraftSelector):
    """Sends two guesses a frame, frames ahead whenever possible, and every alternative."""

    def extend(self, run: DraftRun) -> Guess | None:
        slot, reach = self._next(run)
        return None if slot is None or len(run.slots) >= 2 else self._add(run, slot, reach)

    def sends_ahead(self) -> bool:
        return True

    extend_ahead = extend

    def _is_worth_a_frame(self, chance: float) -> bool:
        return True


def test_frames_sent_ahead_stand_or_fall_and_change_no_token(
    client: EdgeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = [ask(client, prompt, "off", SamplingParams()) for prompt in PROMPTS]
    monkeypatch.setattr("edge.generation.remote_parts.DraftSelector", Reckless)
    drafted = [ask(client, prompt, "ngram", SamplingParams()) for prompt in PROMPTS]
    assert [run.token_ids for run in drafted] == [run.token_ids for run in plain]
    figures = [run.to_json()["drafts"] for run in drafted]
    assert sum(figure["frames_ahead"] for figure in figures) > 0
    assert sum(figure["frames_void"] for figure in figures) > 0


@pytest.fixture(scope="module")
def calibrated(bench: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Edge and cloud bundles with the levels of split 2, the edge's with an untrained head."""
    root = tmp_path_factory.mktemp("calibrated")
    tables = root / "split-2.tables"
    layered = LayeredModel(bench.source, folder=root)
    calibrate(layered, split=2, out=tables, num_tokens=1024)
    copies = root / "edge", root / "cloud"
    for copy, built in zip(copies, (bench.edge_bundle(2), bench.cloud_bundle()), strict=True):
        shutil.copytree(built, copy)
        (copy / "codec").mkdir()
        shutil.copy(tables, copy / "codec")
    embedding = output_embedding(bench.source).float()
    torch.manual_seed(0)
    shape = HeadShape(hidden_size=embedding.shape[1], vocab_size=len(embedding), inner=32)
    head = DraftHead(shape, tokens=torch.arange(len(embedding)), embedding=embedding)
    torch.nn.init.eye_(head.linear.weight)
    draft_dir = copies[0] / "draft"
    draft_dir.mkdir()
    export_head(head, draft_dir / HEAD_NAME)
    (draft_dir / FACTS_NAME).write_text(json.dumps({"split": 2, "sure": [[0.0, 1.0, 0.5]]}))
    for copy in copies:
        write_manifest(copy)
    return copies


@pytest.mark.parametrize("draft", ["ngram", "head", "auto"])
@pytest.mark.parametrize("level", ["lossless", "q2"])
def test_at_any_level_every_drafter_gives_the_tokens_of_that_level(
    calibrated: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, level: str, draft: str
) -> None:
    """Through a server: with frames ahead and alternatives, whether they pay or not."""
    monkeypatch.setattr("edge.generation.remote_parts.DraftSelector", Reckless)
    edge, cloud = calibrated
    with (
        running_server(cloud) as server,
        EdgeClient(edge, server.address, prefill_chunk=16) as client,
    ):
        sent = 0
        for prompt in PROMPTS:
            off, drafted = (
                client.complete(prompt, CompletionRequest(max_new_tokens=40, level=level, draft=d))
                for d in ("off", draft)
            )
            assert drafted.token_ids == off.token_ids
            assert drafted.to_json()["level_counts"].keys() == {level}
            sent += sum(step.num_drafts + step.ahead for step in drafted.steps)
    assert sent > 0


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
