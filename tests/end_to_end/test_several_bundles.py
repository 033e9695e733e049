"""Three bundles of two models behind one address: devices pull theirs, and get its tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge.client import EdgeClient
from edge.errors import RefusedError
from edge.generation.completion import CompletionRequest
from edge.net.grpc_transport import GrpcTransport
from optimizer.export.bundle_builder import build_bundle
from tests.conftest import ModelBench
from tests.end_to_end.greedy import first_difference, generate
from tests.end_to_end.test_pull import hashes, run
from tests.hostile.processes import ListeningProcess, serve_process

PROMPTS = [[9, 40, 77, 120, 33, 61], [200, 14, 15, 90], [5, 6, 7, 8, 9, 10, 11, 12]]
COUNT = 16
# Names of the bundles with their model's family and split. The first two are of one model.
BUNDLES = {"llama-2": ("llama", 2), "llama-3": ("llama", 3), "qwen-1": ("qwen2", 1)}


@pytest.fixture(scope="module")
def folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    for name, (family, split) in BUNDLES.items():
        bench: ModelBench = tiny(family)
        # The upper one has fewer layers, so the server takes the other one's back for both.
        plan = bench.plan(split, back_start=3 if name == "llama-3" else 0)
        build_bundle(
            bench.source, plan, root / name, progress=lambda stage: None, sides=("edge", "cloud")
        )
    return root


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ListeningProcess]:
    first, *others = (str(folder / name) for name in BUNDLES)
    more = [word for one in others for word in ("--bundle", one)]
    log_path = tmp_path_factory.mktemp("log") / "serve.log"
    with serve_process(Path(first), *more, "--kv-memory", "8MiB", log_path=log_path) as process:
        yield process


def pulled(server: str, wanted: str, target: Path) -> Path:
    done = run("pull", "--server", server, "--model", wanted, "--out", target)
    assert done.returncode == 0, done.stderr
    return target


def answer(client: EdgeClient, prompt: list[int]) -> list[int]:
    client._settings = type(client._settings)(stop_token_ids=())
    running = client.start_ids(prompt, CompletionRequest(max_new_tokens=COUNT))
    for _ in running:
        pass
    return list(running.completion.token_ids)


def test_devices_of_every_bundle_get_their_models_tokens_side_by_side(
    tiny: Any, folder: Path, served: ListeningProcess, tmp_path: Path
) -> None:
    targets = {name: pulled(served.address, name, tmp_path / name) for name in BUNDLES}
    for name, target in targets.items():
        assert hashes(target) == hashes(folder / name)

    def answers(name: str) -> list[list[int]]:
        with EdgeClient(targets[name], served.address) as client:
            return [answer(client, prompt) for prompt in PROMPTS]

    names = [*BUNDLES, *BUNDLES]
    with ThreadPoolExecutor(len(names)) as pool:
        got = list(pool.map(answers, names))
    for name, lists in zip(names, got, strict=True):
        whole = tiny(BUNDLES[name][0]).whole
        for prompt, tokens in zip(PROMPTS, lists, strict=True):
            expected = generate(whole, prompt, COUNT)
            assert first_difference(whole, prompt, tokens, expected) is None, name
    assert answers("llama-2") != answers("qwen-1")


def test_an_edge_of_another_model_is_refused_with_what_is_served(
    tiny: Any, served: ListeningProcess
) -> None:
    stranger: ModelBench = tiny("mistral")
    with (
        EdgeClient(stranger.edge_bundle(2), served.address) as client,
        pytest.raises(RefusedError, match="this server serves ") as caught,
    ):
        answer(client, PROMPTS[0])
    assert tiny("qwen2").source.sha256[:12] in str(caught.value)


def test_describe_lists_the_bundles_and_the_server_shares_one_back(
    served: ListeningProcess,
) -> None:
    transport = GrpcTransport(served.address)
    try:
        bundles = transport.describe(timeout_s=10.0).bundles
    finally:
        transport.close()
    assert [one.name for one in bundles] == list(BUNDLES)
    assert [one.split for one in bundles] == [2, 3, 1]
    assert [one.first_layer for one in bundles] == [0, 0, 0]
    assert bundles[0].kv_bytes_limit == bundles[1].kv_bytes_limit
    assert bundles[0].kv_bytes_limit + bundles[2].kv_bytes_limit <= 8 << 20
    assert "llama-2, llama-3 (one back for all of them)" in served.log()


def test_without_a_name_a_pull_and_a_run_list_the_bundles(
    served: ListeningProcess, tmp_path: Path
) -> None:
    for words in (
        ("pull", "--server", served.address, "--out", tmp_path / "none"),
        ("run", "--server", served.address, "--prompt", "once", "--cache-dir", tmp_path / "cache"),
    ):
        done = run(*words, home=tmp_path)
        assert done.returncode == 1
        assert "this server has 3 bundles, choose one with --model: llama-2 (model" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()
    wrong = run("pull", "--server", served.address, "--model", "x", "--out", tmp_path / "none")
    assert "'x' names no bundle" in wrong.stderr
    both = run(
        "pull", "--server", served.address, "--model", "model", "--out", tmp_path / "none"
    )  # the id of both models is that of their folder
    assert "names 3 bundles" in both.stderr


def test_a_run_with_a_name_keeps_its_bundle_apart(
    tiny: Any, served: ListeningProcess, tmp_path: Path
) -> None:
    question = ("--prompt", "once", "--max-new-tokens", "4", "--ignore-eos", "--json")
    for name in ("llama-3", "qwen-1"):
        done = run("run", "--server", served.address, "--model", name, *question, home=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["tokens"]) == 4
    listed = json.loads(run("cache", "list", "--json", home=tmp_path).stdout)["bundles"]
    assert [one["server"] for one in listed] == [
        f"{served.address} llama-3",
        f"{served.address} qwen-1",
    ]
    assert "2 bundles deleted" in run("cache", "clear", served.address, home=tmp_path).stdout


def test_bundles_that_do_not_go_together_end_the_start_in_one_line(
    folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder / "qwen-1", broken)
    (broken / "cloud" / "config.json").write_text("{}")
    first = folder / "llama-2"
    for words, reason in (
        (("--bundle", first), "is given twice"),
        (("--bundle", tmp_path / "nothing"), "no such bundle folder"),
        (("--bundle", broken), "cloud/config.json has 2 bytes"),
        (("--bundle", folder / "qwen-1", "--draft-head", first), "does not go with --bundle"),
        (("--bundle", folder / "qwen-1", "--tensor-parallel", 2), "does not go with --bundle"),
    ):
        done = run("serve", first, *words, "--listen", "127.0.0.1:0")
        assert done.returncode in (1, 2), reason
        assert reason in " ".join(done.stderr.replace("│", " ").split()), done.stderr
        assert "Traceback" not in done.stderr
