"""Several bundles behind one address: which engine an Open gets, and what is said of each."""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from cloud.engine.step_turns import StepTurns, TurnTakingEngine
from cloud.errors import StartError
from cloud.server.bundles import open_bundles
from cloud.server.config import ServerConfig
from cloud.server.kv_shares import kv_shares
from optimizer.artifacts.bundle import write_manifest
from protos import wire
from protos.pull import LIST_FILES_PATH, encode_list_files_request
from tests.cloud.serving import (
    PROMPT,
    SPLIT,
    RawStream,
    Served,
    calls_of,
    connected,
    frame_of,
    generate,
    open_message,
    run,
    until,
)
from tests.cloud.tiny_bundle import MODEL_SHA256, WholeModelFront, make_bundle

OTHER_SHA256 = "cd" * 32


class TwoModels(Served):
    """A bundle of each of two models."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        model = make_bundle(root / "2", "qwen2", sha256=OTHER_SHA256, folder="other")
        self.second = root / "2" / "other"
        self.config = replace(self.config, more_bundles=(self.second,))
        self.other: Any = Served.__new__(Served)
        self.other.model, self.other.config = model, self.config
        self.other.front = WholeModelFront(model, SPLIT)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> TwoModels:
    return TwoModels(tmp_path_factory.mktemp("two"))


def test_sessions_of_two_models_get_their_own_models_tokens_side_by_side(two: TwoModels) -> None:
    async def scenario() -> None:
        expected = two.front.greedy(PROMPT, 10), two.other.front.greedy(PROMPT, 10)
        assert expected[0] != expected[1]
        async with connected(two.config) as (server, channel):

            async def one(name: str, served: Served, sha256: str) -> list[int]:
                stream = await RawStream(channel).open(session_id=name, model_sha256=sha256)
                return await generate(served, stream, PROMPT, 10)

            answers = await asyncio.gather(
                *(one(f"a{index}", two, MODEL_SHA256) for index in range(3)),
                *(one(f"b{index}", two.other, OTHER_SHA256) for index in range(3)),
            )
            assert answers == [expected[0]] * 3 + [expected[1]] * 3
            assert server.admission.num_sessions == 6

    run(scenario)


def test_a_hash_of_no_bundle_is_refused_in_one_line(two: TwoModels) -> None:
    async def scenario() -> None:
        async with connected(two.config) as (server, channel):
            stream = RawStream(channel)
            await stream.send(open_message(model_sha256="01" * 32))
            status, said = await stream.refused()
            assert status is grpc.StatusCode.FAILED_PRECONDITION
            for part in ("01" * 32, "tiny-llama", "tiny-qwen2", MODEL_SHA256[:12]):
                assert part in said
            assert server.admission.num_sessions == 0

    run(scenario)


def test_a_session_id_that_changes_its_model_begins_anew(two: TwoModels) -> None:
    """The same id, resumable under one model, is opened under the other one."""

    async def scenario() -> None:
        async with connected(two.config) as (server, channel):
            stream = await RawStream(channel).open(resume_s=30.0)
            await stream.ask(frame_of(two, 0, PROMPT, 0))
            stream.call.cancel()
            await until(lambda: server.admission.num_resumable == 1)
            again = RawStream(channel)
            await again.send(open_message(model_sha256=OTHER_SHA256, resume_s=30.0))
            opened: Any = await again.receive()
            assert opened.held_frames == 0
            tokens = await generate(two.other, again, PROMPT, 4)
            assert tokens == two.other.front.greedy(PROMPT, 4)

    run(scenario)


def test_it_describes_every_bundle_and_the_first_as_before(two: TwoModels) -> None:
    async def scenario() -> None:
        async with connected(two.config) as (_, channel):
            await RawStream(channel).open(session_id="b", model_sha256=OTHER_SHA256)
            ask = calls_of(channel).unary_unary(wire.DESCRIBE_PATH)
            found = wire.decode_description(await ask(wire.encode_describe_request()))
            assert (found.model_id, found.model_sha256) == ("tiny-llama", MODEL_SHA256)
            assert found.active_sessions == 1
            assert found.kv_bytes_limit == sum(one.kv_bytes_limit for one in found.bundles)
            told = [(one.name, one.model_sha256, one.active_sessions) for one in found.bundles]
            assert told == [("bundle", MODEL_SHA256, 0), ("other", OTHER_SHA256, 1)]

    run(scenario)


def test_metrics_and_the_page_tell_the_models_apart_and_together(two: TwoModels) -> None:
    async def scenario() -> None:
        config = replace(two.config, metrics_port=0, status_port=0)
        async with connected(config) as (server, channel):
            stream = await RawStream(channel).open()
            await generate(two, stream, PROMPT, 3)
            other = await RawStream(channel).open(session_id="b", model_sha256=OTHER_SHA256)
            await generate(two.other, other, PROMPT, 5)
            url = f"http://127.0.0.1:{server.metrics_port}/metrics"
            text = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
            assert 'splitpoint_tokens_total{model="tiny-llama"} 3.0' in text
            assert 'splitpoint_tokens_total{model="tiny-qwen2"} 5.0' in text
            assert server.status is not None
            server.status.board.tick()
            shown = server.status.board.latest
            assert shown["totals"]["tokens"] == 8
            assert [(one["name"], one["tokens"]) for one in shown["models"]] == [
                ("tiny-llama", 3),
                ("tiny-qwen2", 5),
            ]
            assert shown["kv"]["used"] == sum(one["used"] for one in shown["models"]) > 0
            assert {one["model"] for one in shown["sessions"]} == {"tiny-llama", "tiny-qwen2"}

    run(scenario)


def test_a_pull_must_name_one_of_several(two: TwoModels) -> None:
    async def scenario() -> None:
        async with connected(two.config) as (_, channel):
            call = calls_of(channel).unary_unary(LIST_FILES_PATH)
            for wanted, reason in (
                ("", "has 2 bundles, choose one with --model: bundle (model tiny-llama"),
                ("nothing", "names no bundle"),
                ("other", "holds no files for a device"),  # found, but built for a server alone
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(encode_list_files_request(wanted))
                assert reason in (caught.value.details() or "")

    run(scenario)


def config_of(*folders: Path, **changes: Any) -> ServerConfig:
    return ServerConfig(bundle=folders[0], more_bundles=folders[1:], **changes)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "whole")
    return tmp_path / "whole" / "bundle"


def test_bundles_of_one_model_share_the_back_that_begins_lowest(
    two: TwoModels, whole: Path, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "upper", split=3, back_start=3, folder="upper")
    upper = tmp_path / "upper" / "upper"
    first, second = open_bundles(config_of(upper, two.second, whole))
    assert [one.root for one in first.bundles] == [upper, whole]
    assert first.loaded.root == whole
    assert first.names == "upper, bundle"
    assert (first.name, second.name) == ("tiny-llama", "tiny-qwen2")


def changed_back(folder: Path) -> None:
    path = folder / "cloud" / "back-00001.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.nextafter(tensors["model.norm.weight"], torch.tensor(9.0))
    save_file(tensors, path)


def changed_plan(folder: Path) -> None:
    plan = folder / "plan.yaml"
    plan.write_text(plan.read_text().replace("back_bits: 32", "back_bits: 16"))


def changed_config(folder: Path) -> None:
    config = folder / "cloud" / "config.json"
    config.write_text(config.read_text() + " ")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed_back, r"the weights model\.norm\.weight differ"),
        (changed_plan, "its back has 16 bits and not 32"),
        (changed_config, r"cloud/config\.json differs"),
    ],
)
def test_backs_of_one_model_that_differ_are_refused(
    whole: Path, tmp_path: Path, change: Any, reason: str
) -> None:
    make_bundle(tmp_path / "upper", split=3, back_start=3)
    upper = tmp_path / "upper" / "bundle"
    change(upper)
    write_manifest(upper)
    with pytest.raises(StartError, match=f"(?s)same model as.*{reason}.*another address"):
        open_bundles(config_of(whole, upper))


def test_a_bundle_given_twice_is_refused_by_path_and_by_content(
    whole: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(whole)
    for other in (whole, link):
        with pytest.raises(StartError, match="given twice"):
            open_bundles(config_of(whole, other))
    make_bundle(tmp_path / "copy")
    with pytest.raises(StartError, match="is the same bundle as"):
        open_bundles(config_of(whole, tmp_path / "copy" / "bundle"))


def test_options_of_one_bundle_are_refused_with_several(whole: Path, two: TwoModels) -> None:
    for changes in ({"draft_head": whole}, {"tensor_parallel": 2}):
        with pytest.raises(StartError, match="does not go with --bundle"):
            open_bundles(config_of(whole, two.second, **changes))


def test_a_head_and_no_guesses_are_refused_together(whole: Path) -> None:
    with pytest.raises(StartError, match="does not go with --no-drafts"):
        open_bundles(config_of(whole, draft_head=whole, drafts=False))
    assert open_bundles(config_of(whole, drafts=False))


def test_models_of_one_name_get_names_that_differ(whole: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "2", sha256=OTHER_SHA256)
    groups = open_bundles(config_of(whole, tmp_path / "2" / "bundle"))
    assert [one.name for one in groups] == ["tiny-llama@abababab", "tiny-llama@cdcdcdcd"]


def test_kv_memory_gives_every_model_room_for_as_many_tokens() -> None:
    assert kv_shares(1001, [16]) == [1001]
    assert kv_shares(1000, [10, 30]) == [250, 750]
    assert kv_shares(1000, [0, 30]) == [0, 1000]
    assert kv_shares(1000, [0, 0]) == [500, 500]


class NotedEngine:
    """Notes which engine runs, and that no other does."""

    def __init__(self, name: str, notes: list[str], running: list[str]) -> None:
        self._name, self._notes, self._running = name, notes, running

    def forward(self, batch: Any) -> list[Any]:
        self._running.append(self._name)
        assert len(self._running) == 1
        self._notes.append(self._name)
        self._running.remove(self._name)
        return []


def test_engines_take_turns_in_the_order_of_asking() -> None:
    turns, notes, running = StepTurns(), [], []  # type: ignore[var-annotated]
    names = [str(index) for index in range(6)]
    engines = [TurnTakingEngine(NotedEngine(name, notes, running), turns) for name in names]
    threads = []
    with turns:  # all ask while somebody runs, one after the other
        for index, engine in enumerate(engines):
            threads.append(threading.Thread(target=engine.forward, args=([],)))
            threads[-1].start()
            while turns._asked < index + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert notes == names
