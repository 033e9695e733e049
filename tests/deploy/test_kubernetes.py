"""The manifests fit together: names, ports, labels and what Envoy is told. Envoy reads its file."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from protos.metadata import PREFIX_KEY, SESSION_KEY
from tests.deploy.dockerfile import DEPLOY
from tests.deploy.test_deploy_files import manifest, metric_names
from tests.tls_keys import make_keys, needs_openssl

FOLDER = DEPLOY / "kubernetes"
ENVOY = yaml.safe_load((FOLDER / "envoy.yaml").read_text(encoding="utf-8"))
SCALING = yaml.safe_load((FOLDER / "autoscaling.yaml").read_text(encoding="utf-8"))
DOOR = "splitpoint-door"
ENVOY_FILES = ["kubernetes/envoy.yaml", "door/envoy.yaml"]
ENVOY_PROGRAM = os.environ.get("SPLITPOINT_ENVOY") or shutil.which("envoy")


def pod(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = manifest(kind, name)["spec"]["template"]
    return found


def listeners() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in ENVOY["static_resources"]["listeners"]}


def port_of(place: dict[str, Any]) -> int:
    port: int = place["socket_address"]["port_value"]
    return port


@pytest.mark.parametrize(
    ("service", "kind", "workload"),
    [
        ("splitpoint-cloud", "Deployment", DOOR),
        ("splitpoint-servers", "StatefulSet", "splitpoint-cloud"),
    ],
)
def test_services_find_pods_and_their_ports(service: str, kind: str, workload: str) -> None:
    spec, template = manifest("Service", service)["spec"], pod(kind, workload)
    assert spec["selector"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    named = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in spec["ports"]} <= named


def test_the_door_resolves_every_server_and_checks_its_certificate() -> None:
    headless = manifest("Service", "splitpoint-servers")
    assert headless["spec"]["clusterIP"] == "None"
    assert manifest("StatefulSet")["spec"]["serviceName"] == headless["metadata"]["name"]
    (servers,) = ENVOY["static_resources"]["clusters"]
    (end,) = servers["load_assignment"]["endpoints"][0]["lb_endpoints"]
    address = end["endpoint"]["address"]
    assert address["socket_address"]["address"] == headless["metadata"]["name"]
    assert port_of(address) == headless["spec"]["ports"][0]["port"]
    tls = servers["transport_socket"]["typed_config"]
    names = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert [one["matcher"]["exact"] for one in names] == [headless["metadata"]["name"]]
    assert servers["type"] == "STRICT_DNS"


def test_the_door_hashes_on_what_the_edge_sends() -> None:
    (chain,) = listeners()["door"]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    hashed = [one["header"]["header_name"] for one in route["route"]["hash_policy"]]
    assert hashed == [PREFIX_KEY, SESSION_KEY]
    assert route["route"]["timeout"] == "0s"  # an answer may take hours
    assert manager["use_remote_address"] is True  # else a client writes x-forwarded-for itself


@pytest.mark.parametrize("file", ENVOY_FILES)
def test_a_stream_finds_a_server_that_takes_it(file: str) -> None:
    """One that reached no server tries another one, and one that drains is never chosen."""
    static = yaml.safe_load((DEPLOY / file).read_text(encoding="utf-8"))["static_resources"]
    manager = static["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    retries = route["route"]["retry_policy"]
    assert retries["retry_on"] == "connect-failure"  # what has reached a server is never sent twice
    (predicate,) = retries["retry_host_predicate"]
    assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"
    assert retries["host_selection_retry_max_attempts"] > 0
    (servers,) = static["clusters"]
    assert servers["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}
    (check,) = servers["health_checks"]
    assert check["no_traffic_interval"] == check["interval"] == "1s"  # Envoy's own is a minute


@pytest.mark.parametrize("file", ENVOY_FILES)
def test_envoy_notices_who_has_vanished(file: str) -> None:
    """It answers both sides' pings, so neither side would notice the other's end."""
    static = yaml.safe_load((DEPLOY / file).read_text(encoding="utf-8"))["static_resources"]
    manager = static["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (servers,) = static["clusters"]
    (upstream,) = servers["typed_extension_protocol_options"].values()
    for options in (manager, upstream["explicit_http_config"]):
        pings = options["http2_protocol_options"]["connection_keepalive"]
        assert pings == {"interval": "20s", "timeout": "10s"}


def test_a_door_that_ends_lets_its_streams_go_on_for_a_while() -> None:
    """Envoy ends at once on SIGTERM, so the time before it has to come from Kubernetes."""
    spec = pod("Deployment", DOOR)["spec"]
    (container,) = spec["containers"]
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert 0 < int(seconds) < spec["terminationGracePeriodSeconds"]


def test_the_doors_ports_are_those_that_are_probed() -> None:
    (container,) = pod("Deployment", DOOR)["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    places = listeners()
    assert ports == {
        "grpc": port_of(places["door"]["address"]),
        "ready": port_of(places["ready"]["address"]),
    }
    assert port_of(ENVOY["admin"]["address"]) not in ports.values()
    assert ENVOY["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"


def test_servers_know_that_a_proxy_speaks() -> None:
    (container,) = pod("StatefulSet", "splitpoint-cloud")["spec"]["containers"]
    assert "--behind-proxy" in container["args"]


def test_only_the_door_reaches_the_servers() -> None:
    """Who says x-forwarded-for is believed, so nobody else may come."""
    rules = manifest("NetworkPolicy")["spec"]
    sessions = [rule for rule in rules["ingress"] if {"port": "grpc"} in rule["ports"]]
    (rule,) = sessions
    (source,) = rule["from"]
    assert source["podSelector"]["matchLabels"].items() <= (
        pod("Deployment", DOOR)["metadata"]["labels"].items()
    )
    assert set(rules["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in rules  # a server calls nobody


@pytest.mark.parametrize(
    ("kind", "name"), [("StatefulSet", "splitpoint-cloud"), ("Deployment", DOOR)]
)
def test_every_pod_is_locked_and_keeps_a_budget(kind: str, name: str) -> None:
    spec = pod(kind, name)["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert "memory" in container["resources"]["limits"]
    budget = manifest("PodDisruptionBudget", name)["spec"]
    assert budget["selector"]["matchLabels"].items() <= (
        pod(kind, name)["metadata"]["labels"].items()
    )
    assert 0 < budget["minAvailable"] < manifest(kind, name)["spec"]["replicas"]


def test_scaling_asks_for_metrics_that_there_are() -> None:
    queries = [trigger["metadata"]["query"] for trigger in SCALING["spec"]["triggers"]]
    assert all(set(re.findall(r"splitpoint_[a-z_]+", query)) <= metric_names() for query in queries)
    target = SCALING["spec"]["scaleTargetRef"]
    assert manifest(target["kind"], target["name"])
    least = SCALING["spec"]["minReplicaCount"]
    assert least == manifest("StatefulSet")["spec"]["replicas"]


@needs_openssl
@pytest.mark.skipif(ENVOY_PROGRAM is None, reason="envoy is not installed (SPLITPOINT_ENVOY)")
@pytest.mark.parametrize("file", ENVOY_FILES)
def test_envoy_takes_the_file(tmp_path: Path, file: str) -> None:
    keys = make_keys(tmp_path, "door")
    for source, name in ((keys.cert, "tls.crt"), (keys.key, "tls.key"), (keys.ca, "ca.crt")):
        shutil.copy(source, tmp_path / name)
    text = (DEPLOY / file).read_text(encoding="utf-8").replace("/secrets", str(tmp_path))
    config = tmp_path / "envoy.yaml"
    config.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [str(ENVOY_PROGRAM), "--mode", "validate", "-c", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
