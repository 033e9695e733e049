"""What a file of Ray Serve may say, and what becomes of it in a replica."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloud.cluster.door import read_door
from cloud.cluster.settings import bundle_name, read_replicas, replica_config, replica_threads
from cloud.errors import StartError
from cloud.server.config import ServerConfig
from protos.addresses import Address


def test_the_settings_of_a_server_and_of_the_cluster() -> None:
    said = read_replicas(
        {
            "bundle": "/b",
            "max_sessions": 9,
            "token_file": "/t",
            "min_replicas": 2,
            "max_replicas": 4,
            "target": 0.5,
            "gpus": 0.5,
        }
    )
    assert (said.config.bundle, said.config.max_sessions) == (Path("/b"), 9)
    assert said.config.access.token_file == Path("/t")
    assert (said.scaling.least, said.scaling.most, said.scaling.target) == (2, 4, 0.5)
    assert (said.gpus, said.node_host) == (0.5, False)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "bundle: the bundle's folder is missing"),
        ({"bundle": "/b", "max_sesions": 1}, "max_sesions: no such setting"),
        ({"bundle": "/b", "port": 1}, "port: no such setting"),
        ({"bundle": "/b", "min_replicas": 3, "max_replicas": 2}, "min_replicas"),
        ({"bundle": "/b", "target": 0}, "target lies above 0"),
        ({"bundle": "/b", "replica_host": "pod"}, "neither loopback nor node"),
        ({"bundle": "/b", "credentials": "/no/file"}, "/no/file"),
        ({"bundle": "/b", "more_bundles": "/c"}, "more_bundles: a list"),
        ({"bundle": "/b", "more_bundles": [1]}, "more_bundles: a list"),
        ({"bundle": "/b", "insecure": "false"}, "insecure: 'false' is neither true nor false"),
        ({"bundle": "/b", "behind_proxy": "no"}, "behind_proxy: 'no' is neither"),
        ({"bundle": "/b", "min_replicas": "2"}, "min_replicas: '2' is no whole number"),
        ({"bundle": "/b", "gpus": "half"}, "gpus: 'half' is no number"),
        ({"bundle": "/b", "cpus": float("nan")}, "cpus: nan is no number"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(StartError, match=reason):
        read_replicas(arguments)


def test_a_replica_beside_its_door_speaks_plain_text_and_still_asks_for_tokens() -> None:
    said = read_replicas(
        {"bundle": "/b", "tls_cert": "/c", "tls_key": "/k", "client_ca": "/ca", "token_file": "/t"}
    )
    config = replica_config(said, name="r-1", node_address="10.0.0.2")
    assert (config.host, config.port, config.replica) == ("127.0.0.1", 0, "r-1")
    assert not config.access.tls
    assert config.access.credentials() is None
    assert config.access.token_file == Path("/t")
    config.access.check(config.host)


def test_a_replica_on_another_machine_keeps_tls_and_refuses_to_be_open() -> None:
    said = read_replicas({"bundle": "/b", "replica_host": "node"})
    config = replica_config(said, name="r-1", node_address="10.0.0.2")
    with pytest.raises(StartError, match="refusing to listen on"):
        config.access.check(config.host)
    said = read_replicas(
        {"bundle": "/b", "tls_cert": "/c", "tls_key": "/k", "token_file": "/t"}
        | {"replica_host": "node"}
    )
    assert replica_config(said, name="r-1", node_address="10.0.0.2").access.tls


def test_client_certificates_do_not_go_with_replicas_that_others_can_reach() -> None:
    said = read_replicas(
        {"bundle": "/b", "tls_cert": "/c", "tls_key": "/k", "client_ca": "/ca"}
        | {"replica_host": "node"}
    )
    with pytest.raises(StartError, match="checked by the door"):
        replica_config(said, name="r-1", node_address="10.0.0.2")


def test_replicas_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.cluster.settings.usable_cpus", lambda: 8)
    assert replica_threads(ServerConfig(bundle=Path("/b")), 3).threads == 2
    assert replica_threads(ServerConfig(bundle=Path("/b")), 1).threads is None
    assert replica_threads(ServerConfig(bundle=Path("/b"), threads=5), 3).threads == 5


def test_a_link_to_the_bundle_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v1").mkdir()
    (tmp_path / "now").symlink_to("v1")
    assert replica_threads(ServerConfig(bundle=Path("now")), 1).bundle == tmp_path / "now"
    assert bundle_name(tmp_path / "now") == ""
    (tmp_path / "v1" / "manifest.json").write_text("{}")
    assert len(bundle_name(tmp_path / "now")) == 16


def test_several_bundles_are_a_list_and_name_a_replicas_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = read_replicas({"bundle": "/b", "more_bundles": ["/c", "/d"]})
    assert said.config.bundles == (Path("/b"), Path("/c"), Path("/d"))
    monkeypatch.chdir(tmp_path)
    config = ServerConfig(bundle=Path("b"), more_bundles=(Path("c"),))
    assert replica_threads(config, 1).bundles == (tmp_path / "b", tmp_path / "c")
    names = set()
    for first, second in (("1", "2"), ("1", "3"), ("2", "1")):
        for folder, text in (("b", first), ("c", second)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "manifest.json").write_text(text)
        names.add(bundle_name(*config.bundles))
    assert len(names) == 3
    (tmp_path / "c" / "manifest.json").unlink()
    assert bundle_name(*config.bundles) == ""


@pytest.mark.parametrize(
    "name",
    ["insecure", "behind_proxy", "verify", "decode_short_frames", "allow_pull", "drafts"],
)
def test_a_text_is_no_flag_of_a_replica(name: str) -> None:
    with pytest.raises(StartError, match=f"{name}: 'false' is neither true nor false"):
        read_replicas({"bundle": "/b", name: "false"})


@pytest.mark.parametrize("name", ["insecure", "behind_proxy"])
def test_a_text_opens_no_door(name: str) -> None:
    with pytest.raises(StartError, match=f"{name}: 'false' is neither true nor false"):
        read_door({name: "false"})


def test_the_doors_settings() -> None:
    said = read_door({"listen": "127.0.0.1:7", "max_replicas": 3, "metrics": "127.0.0.1:8"})
    assert (said.host, said.port, said.most_replicas) == ("127.0.0.1", 7, 3)
    assert said.metrics == Address("127.0.0.1", 8)
    with pytest.raises(StartError, match=r"metrics: .* has no password"):
        read_door({"metrics": "10.0.0.2:8"})
    with pytest.raises(StartError, match="is not HOST:PORT"):
        read_door({"listen": "nowhere"})
