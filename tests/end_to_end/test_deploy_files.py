"""deploy/ says what the program takes: its flags, its ports, its metrics' names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cloud.server.metrics import Metrics
from splitpoint.cli import make_app

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes/splitpoint-cloud.yaml").read_text()))
METRIC = re.compile(r"splitpoint_[a-z_]+")


def flags_of(command: str) -> set[str]:
    group: Any = typer.main.get_command(make_app([command]))
    return {name for parameter in group.commands[command].params for name in parameter.opts}


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (document for document in MANIFESTS if document["kind"] == kind)
    return found


def metric_names() -> set[str]:
    """Every name that /metrics shows, those of the server's gauges included."""
    gauges = "sessions sessions_waiting sessions_parked kv_blocks kv_blocks_used kv_blocks_cached"
    names = {f"splitpoint_{name}" for name in gauges.split()}
    for family in Metrics().registry.collect():
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names


@pytest.mark.parametrize("name", ["cloud-cpu", "cloud-cuda", "edge"])
def test_images_start_commands_with_flags_that_exist(name: str) -> None:
    text = (DEPLOY / f"docker/{name}.Dockerfile").read_text()
    command = text[text.index("\nENTRYPOINT" if "ENTRYPOINT" in text else "\nCMD") :]
    used = set(re.findall(r"--[a-z][a-z-]+", command))
    assert used
    assert used <= flags_of("api" if name == "edge" else "serve")
    assert "USER 10001" in text


def test_the_edges_image_has_what_its_command_needs() -> None:
    text = (DEPLOY / "docker/edge.Dockerfile").read_text()
    assert '".[edge,api]"' in text  # `splitpoint api` needs the API's packages
    assert "splitpoint api /bundle" in text
    for variable in ("SPLITPOINT_SERVER", "SPLITPOINT_TLS_CA", "SPLITPOINT_TOKEN_FILE"):
        assert f"${{{variable}" in text or f"${variable}" in text
    assert "HEALTHCHECK" in text


def test_a_service_with_tls_is_not_announced_as_clear_text() -> None:
    (grpc,) = (p for p in manifest("Service")["spec"]["ports"] if p["name"] == "grpc")
    arguments = manifest("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    has_tls = any(argument.startswith("--tls-cert") for argument in arguments)
    assert has_tls
    assert grpc["appProtocol"] == "https"


def test_the_unit_starts_the_api_with_flags_that_exist() -> None:
    text = (DEPLOY / "systemd/splitpoint-edge.service").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    assert set(re.findall(r"--[a-z][a-z-]+", command)) <= flags_of("api")


def test_the_manifest_keeps_a_client_at_its_server_and_outlives_the_drain() -> None:
    service, deployment = manifest("Service")["spec"], manifest("Deployment")["spec"]
    assert service["sessionAffinity"] == "ClientIP"
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    arguments = dict(arg.partition("=")[::2] for arg in container["args"])
    assert set(arguments) <= flags_of("serve")
    assert pod["terminationGracePeriodSeconds"] > float(arguments["--drain"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert arguments["--listen"].endswith(f":{ports['grpc']}")
    assert arguments["--metrics"].endswith(f":{ports['metrics']}")


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "alerts.yaml"])
def test_dashboard_and_alerts_ask_for_metrics_that_exist(name: str) -> None:
    text = (DEPLOY / "monitoring" / name).read_text()
    json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    expressions = re.findall(r'"?expr"?: *(.*)', text)
    assert expressions
    asked = set(METRIC.findall(" ".join(expressions)))
    assert asked <= metric_names()
