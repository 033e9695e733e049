"""deploy/ says what the program takes: its flags, its ports, its metrics' names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib
import typer
import yaml

from cloud.server.http_endpoint import HttpEndpoint
from cloud.server.metrics import Metrics
from splitpoint.cli import make_app
from splitpoint.settings import options_of, variables_of
from tests.deploy.dockerfile import DEPLOY, NAMES, ROOT, of, stages, variables

MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes/splitpoint-cloud.yaml").read_text()))
METRIC = re.compile(r"splitpoint_[a-z_]+")


def flags_of(command: str) -> set[str]:
    group: Any = typer.main.get_command(make_app([command]))
    return {name for parameter in group.commands[command].params for name in parameter.opts}


def option_variables(command: str) -> set[str]:
    """Every variable that sets an option of a command."""
    group: Any = typer.main.get_command(make_app([command]))
    found = group.commands[command]
    return {name for key in options_of(found) for name in variables_of(command, key)}


def manifest(kind: str, name: str = "splitpoint-cloud") -> dict[str, Any]:
    (found,) = (
        document
        for document in MANIFESTS
        if document["kind"] == kind and document["metadata"]["name"] == name
    )
    return found


def metric_names() -> set[str]:
    """Every name that /metrics shows, those of the server's gauges included."""
    gauges = "sessions sessions_waiting sessions_parked kv_blocks kv_blocks_used kv_blocks_cached"
    names = {f"splitpoint_{name}" for name in gauges.split()}
    for family in Metrics().registry.collect():
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, ("",))}
    return names


@pytest.mark.parametrize("name", NAMES)
def test_an_image_starts_a_command_and_sets_only_options_that_it_has(name: str) -> None:
    last = stages(name)[-1]
    (entry,) = of(last, "ENTRYPOINT")
    program, command, *given = entry.words
    assert (program, given) == ("splitpoint", ["/bundle"])
    own = {name for name in variables(last) if name.startswith("SPLITPOINT_")}
    assert own
    assert own <= option_variables(command)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_stages_and_its_last_one_neither_sources_nor_compiler(name: str) -> None:
    first, last = stages(name)
    assert "gcc" in " ".join(step.rest for step in of(first, "RUN"))
    assert "gcc" not in " ".join(step.rest for step in of(last, "RUN"))
    assert [step.rest for step in of(last, "COPY")] == [
        "--from=build /opt/splitpoint /opt/splitpoint"
    ]
    assert [step.rest for step in of(last, "USER")] == ["10001"]
    assert [step.rest for step in of(last, "STOPSIGNAL")] == ["SIGTERM"]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_installs_extras_that_there_are_and_copies_what_it_may(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, _ = stages(name)
    ran = " ".join(step.rest for step in of(first, "RUN"))
    (extras,) = re.findall(r'"\.\[([a-z,]+)\]"', ran)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert ("torch" in ran.lower()) == (extras == "cloud")
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for step in of(first, "COPY"):
        source = step.words[0]
        assert (ROOT / source).exists()
        assert source == "." or f"!{source}" in allowed


def test_what_enters_an_image_is_what_its_install_reads_and_nothing_else() -> None:
    """No bundle, secret or model that lies in the checkout; but every package and its texts."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    project = settings["project"]
    wanted = {one.rstrip("*") for one in packages} | {
        "pyproject.toml",
        "setup.py",
        project["readme"],
    }
    wanted |= {*project["license-files"], "deploy/docker/health.py"}
    assert {rule[1:] for rule in rules if rule.startswith("!")} == wanted


@pytest.mark.parametrize("name", NAMES)
def test_a_health_check_asks_where_the_process_listens(name: str) -> None:
    last = stages(name)[-1]
    (check,) = of(last, "HEALTHCHECK")
    python, script, listens, *certificates = check.words
    assert (python, script) == ("python", "/opt/splitpoint/health.py")
    assert listens in variables(last)
    (entry,) = of(last, "ENTRYPOINT")
    assert set(certificates) <= option_variables(entry.words[1])


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_health_check_follows_the_answer(everywhere: bool) -> None:
    """200 is healthy; 503, and nobody there, are not. A proxy in the environment is not asked."""
    state = {"status": "200 OK"}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(state["status"] if environ["PATH_INFO"] == "/health" else "404 No", [])
        return [b""]

    endpoint = HttpEndpoint(app, "127.0.0.1", 0, name="health")

    def asked() -> int:
        listen = f"{'0.0.0.0' if everywhere else '127.0.0.1'}:{endpoint.port}"
        return subprocess.run(
            [sys.executable, DEPLOY / "docker/health.py", "LISTEN", "CERTIFICATE"],
            env={"LISTEN": listen, "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            check=False,
        ).returncode

    try:
        assert asked() == 0
        state["status"] = "503 Service Unavailable"
        assert asked() == 1
    finally:
        endpoint.stop()
    assert asked() == 1


def test_compose_sets_options_that_there_are_and_locks_both_containers() -> None:
    services = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    for name, command, file in (("cloud", "serve", "cloud-cpu"), ("edge", "api", "edge")):
        service = services[name]
        assert set(service["environment"]) <= option_variables(command)
        assert service["build"]["dockerfile"] == f"deploy/docker/{file}.Dockerfile"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert services["edge"]["depends_on"]["cloud"]["condition"] == "service_healthy"
    assert all(port.startswith("127.0.0.1:") for port in services["edge"]["ports"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_secrets_for_a_trial_are_whole_and_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    script = DEPLOY / "docker/make_secrets.sh"
    subprocess.run([script, folder, "gpu.example", "10.0.0.5"], check=True, capture_output=True)
    files = {path.name: path for path in folder.iterdir()}
    assert set(files) == {"ca.crt", "tls.crt", "tls.key", "token", "tokens"}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    check = ["openssl", "verify", "-verify_hostname", "gpu.example"]
    told = subprocess.run(
        [*check, "-CAfile", files["ca.crt"], files["tls.crt"]],
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.stdout.endswith("OK\n"), told.stderr
    assert subprocess.run([script, folder], check=False, capture_output=True).returncode != 0


def test_a_service_with_tls_is_not_announced_as_clear_text() -> None:
    (grpc,) = (p for p in manifest("Service")["spec"]["ports"] if p["name"] == "grpc")
    arguments = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"][0]["args"]
    has_tls = any(argument.startswith("--tls-cert") for argument in arguments)
    assert has_tls
    assert grpc["appProtocol"] == "https"


def test_the_pod_asks_for_health_and_writes_nowhere() -> None:
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": "metrics"}
    # A server that drains is alive: only /metrics says so.
    assert container["livenessProbe"]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["enableServiceLinks"] is False  # its variables would begin as our options do
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001


def test_the_unit_starts_the_api_with_flags_that_exist() -> None:
    text = (DEPLOY / "systemd/splitpoint-edge.service").read_text()
    (command,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    assert set(re.findall(r"--[a-z][a-z-]+", command)) <= flags_of("api")
    assert set(re.findall(r"SPLITPOINT_[A-Z_]+", text)) <= option_variables("api")


def test_the_manifest_gives_options_that_there_are_and_outlives_the_drain() -> None:
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
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
