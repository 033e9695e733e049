"""Guesses of the server's own layers, through a real server: the tokens are those of `off`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.arrays import F32
from codec.levels.row_forecast import RowForecast
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from optimizer.artifacts.bundle import write_manifest
from optimizer.export.calibration.calibrate import calibrate
from optimizer.export.layers.layered_model import LayeredModel
from protos.messages import Drafts
from tests.conftest import ModelBench
from tests.end_to_end.servers import running_server
from tests.end_to_end.test_cloud_drafts import SAMPLINGS, SLOW_LINK
from tests.end_to_end.test_drafting import PROMPTS, Reckless

SPLIT = 2
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def bundles(bench: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Edge and cloud, whose tables forecast rows at the split."""
    root = tmp_path_factory.mktemp("forecasting")
    tables = root / f"split-{SPLIT}.tables"
    calibrate(LayeredModel(bench.source, folder=root), split=SPLIT, out=tables, num_tokens=1024)
    copies = root / "edge", root / "cloud"
    for copy, built in zip(copies, (bench.edge_bundle(SPLIT), bench.cloud_bundle()), strict=True):
        shutil.copytree(built, copy)
        (copy / "codec").mkdir()
        shutil.copy(tables, copy / "codec")
        write_manifest(copy)
    return copies


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Drafts]:
    """What the server guessed; the edge sends all of it, however unlikely."""
    told: list[Drafts] = []

    class Listening(Reckless):
        def hear(self, drafts: Drafts) -> None:
            told.append(drafts)
            super().hear(drafts)

    monkeypatch.setattr("edge.generation.remote_parts.DraftSelector", Listening)
    return told


@contextmanager
def client_of(edge: Path, address: str) -> Iterator[EdgeClient]:
    host, port = address.split(":")
    with EmulatedLink(target=(host, int(port)), shape=SLOW_LINK) as link:
        far = f"{link.address[0]}:{link.address[1]}"
        with EdgeClient(edge, far, prefill_chunk=16, concurrency=len(SAMPLINGS)) as client:
            yield client


def ask(
    client: EdgeClient, at: int, draft: str, level: str, sampling: SamplingParams
) -> Completion:
    request = CompletionRequest(
        max_new_tokens=NEW_TOKENS, sampling=sampling, draft=draft, level=level
    )
    return client.complete(PROMPTS[at], request)


@pytest.mark.parametrize("level", ["lossless", "q2"])
def test_the_tokens_are_those_of_plain_decoding(
    bundles: tuple[Path, Path], heard: list[Drafts], level: str
) -> None:
    edge, cloud = bundles
    with running_server(cloud) as server:
        with client_of(edge, server.address) as client:
            plain = [ask(client, at, "off", level, one) for at, one in enumerate(SAMPLINGS)]
            assert not heard
            for draft in ("cloud", "auto"):
                drafted = [ask(client, at, draft, level, one) for at, one in enumerate(SAMPLINGS)]
                assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
                assert any(one.to_json()["drafts"]["sent"] for one in drafted)
        assert len(heard) > NEW_TOKENS
        assert {drafts.source for drafts in heard} == {2}
        assert server.server.pool.used_bytes == 0


@pytest.mark.parametrize("draft", ["cloud", "auto"])
def test_with_rows_that_are_right_the_guesses_are_the_models_own_tokens(
    bundles: tuple[Path, Path],
    bench: ModelBench,
    heard: list[Drafts],
    monkeypatch: pytest.MonkeyPatch,
    draft: str,
) -> None:
    """So the server forecasts behind the right row and token, also where it refused drafts."""
    monkeypatch.setattr("cloud.drafting.forecast_drafter.LEAST_REACH_OF_A_STEP", 0.0)
    edge, cloud = bundles
    with running_server(cloud) as server, client_of(edge, server.address) as client:
        plain = ask(client, 0, "off", "lossless", SamplingParams())
        ids = [*client.tokenizer.encode(PROMPTS[0]), *plain.token_ids]
        assert len(ids) == plain.num_prompt_tokens + NEW_TOKENS
        with torch.inference_mode():
            out = bench.whole(torch.tensor([ids]), output_hidden_states=True)
        true_rows = out.hidden_states[SPLIT][0].numpy()

        def exact(_: RowForecast, token_ids: Sequence[int], before: F32) -> F32:
            at = int(np.square(true_rows - before).sum(1).argmin()) + 1
            end = at + len(token_ids)
            rows = np.zeros((len(token_ids), len(before)), dtype=np.float32)
            if list(token_ids) == ids[at:end]:  # else behind the answer's end, or a fault
                rows[:] = true_rows[at:end]
            return rows

        monkeypatch.setattr(RowForecast, "rows", exact)
        assert ask(client, 0, draft, "lossless", SamplingParams()).token_ids == plain.token_ids
    guessed = [
        (choices[0].token_id, ids[position])
        for drafts in heard
        for position, choices in enumerate(drafts.choices, start=drafts.first_position)
        if position < len(ids)
    ]
    assert len(guessed) > NEW_TOKENS
    assert all(guess == true for guess, true in guessed)


def test_several_devices_at_once_hear_guesses_and_none_changes_a_token(
    bundles: tuple[Path, Path], heard: list[Drafts]
) -> None:
    edge, cloud = bundles
    everyone = range(len(SAMPLINGS))
    with (
        running_server(cloud) as server,
        client_of(edge, server.address) as client,
        ThreadPoolExecutor(len(everyone)) as devices,
    ):
        plain = [ask(client, at, "off", "q2", SAMPLINGS[at]) for at in everyone]
        drafted = devices.map(lambda at: ask(client, at, "cloud", "q2", SAMPLINGS[at]), everyone)
        assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    assert heard


def test_a_server_that_shall_not_guess_does_not(
    bundles: tuple[Path, Path], heard: list[Drafts]
) -> None:
    edge, cloud = bundles
    with running_server(cloud, drafts=False) as server, client_of(edge, server.address) as client:
        assert ask(client, 0, "cloud", "q2", SamplingParams()).token_ids
    assert not heard
