"""The edge runs where torch is not: checked in a process in which importing it fails."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import edge

FORBIDDEN = ("torch", "transformers", "optimum", "gguf", "safetensors")
SCRIPT = """
import importlib, importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {forbidden!r}:
            raise ImportError(name + " must not be imported on the edge")

sys.meta_path.insert(0, Refuse())
for name in {modules!r}:
    importlib.import_module(name)
"""
COMMANDS_OF_THE_EDGE = ("run", "chat", "doctor", "emulate_link", "pull", "cache")


def in_a_process_without_torch(modules: list[str]) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(forbidden=FORBIDDEN, modules=modules)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )


def test_every_edge_module_imports_where_importing_torch_fails() -> None:
    found = pkgutil.walk_packages(edge.__path__, "edge.")
    modules = ["edge", *(module.name for module in found)]
    assert len(modules) > 40
    finished = in_a_process_without_torch(modules)
    assert finished.returncode == 0, finished.stderr


def test_the_whole_command_line_imports_where_importing_torch_fails() -> None:
    commands = [f"splitpoint.commands.{name}" for name in COMMANDS_OF_THE_EDGE]
    finished = in_a_process_without_torch(["splitpoint.cli", *commands])
    assert finished.returncode == 0, finished.stderr


def test_the_check_itself_can_fail() -> None:
    assert in_a_process_without_torch(["cloud.engine.back_engine"]).returncode != 0
