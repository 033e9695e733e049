"""What each machine installs is enough for its modules, and nothing reports to its maker."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import cloud
import edge

ROOT = Path(__file__).parents[1]
ROOMS = ("splitpoint", "hwprofiles", "codec", "protos", "decoding", "optimizer", "edge", "cloud")
# Packages that only another machine installs.
NOT_ON = {
    "edge": ("torch", "transformers", "optimum", "gguf", "onnx", "safetensors", "simpy"),
    "cloud": ("optimum", "gguf", "onnx", "onnx_ir", "onnxruntime", "accelerate", "simpy"),
}
# Compiled, or of an extra that a server may do without.
OF_AN_EXTRA = re.compile(r"\._kernel$|^cloud\.cluster\.on_ray\b")
# Our own code may not ask for them. transformers may: it looks what is there, and does without.
SCRIPT = """
import importlib, importlib.abc, sys

def asker():
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__", "").startswith("importlib"):
        frame = frame.f_back
    return frame.f_globals["__name__"].partition(".")[0]

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r} and asker() in {rooms!r}:
            raise ModuleNotFoundError(name + " is not installed here")

sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
"""
ORT = "onnxruntime"


def python(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables},
    )


@pytest.mark.parametrize(("room", "command"), [(edge, "api"), (cloud, "serve")])
def test_the_modules_of_a_machine_import_with_its_own_packages_alone(
    room: object, command: str
) -> None:
    package: str = room.__name__  # type: ignore[attr-defined]
    found = pkgutil.walk_packages(room.__path__, f"{package}.")  # type: ignore[attr-defined]
    modules = [one.name for one in found if not OF_AN_EXTRA.search(one.name)]
    assert len(modules) > 40
    modules.append(f"splitpoint.commands.{command}")
    finished = python(SCRIPT.format(refused=NOT_ON[package], rooms=ROOMS, modules=modules))
    assert finished.returncode == 0, finished.stderr


def test_a_build_machine_has_what_trying_the_back_imports() -> None:
    """A build runs the server's layers, without what only a listening server needs."""
    refused = ("grpc_health", "grpc_reflection", "prometheus_client", "llguidance", "simpy")
    modules = ["splitpoint.commands.build", "optimizer.export.bundle_builder"]
    modules.append("cloud.engine.served_back")
    finished = python(SCRIPT.format(refused=refused, rooms=ROOMS, modules=modules))
    assert finished.returncode == 0, finished.stderr
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {re.split("[<>=]", one)[0] for one in project["optional-dependencies"]["build"]}
    assert {"grpcio", "protobuf"} <= installed


def test_onnx_runtime_keeps_no_device_id(tmp_path: Path) -> None:
    for module in ("edge.device.front", "hwprofiles.profiler.kernel_runs"):
        finished = python(f"import {module}", HOME=str(tmp_path))
        assert finished.returncode == 0, finished.stderr
        assert list(tmp_path.rglob("*")) == []


def test_every_room_that_imports_onnx_runtime_turns_its_telemetry_off_before() -> None:
    rooms = {
        room
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if ORT in imported(path.read_text(encoding="utf-8"))
    }
    assert {"edge", "optimizer", "hwprofiles", "splitpoint"} <= rooms
    for room in rooms:
        assert "turn_off_telemetry()" in (ROOT / room / "__init__.py").read_text(encoding="utf-8")


def imported(source: str) -> set[str]:
    """Top-level names of the packages that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found
