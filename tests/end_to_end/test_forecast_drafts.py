"""Guesses of the server's own layers, through a real server: the tokens are those of `off`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

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
