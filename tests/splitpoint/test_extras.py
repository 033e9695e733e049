"""Every package that the code imports is installed by an extra, and the hints name that extra."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from cloud.kernel import library as native
from codec.kernel.loader import load_kernel
from splitpoint.cli import main
from splitpoint.commands.doctor import PACKAGES_OF_SIDE
from splitpoint.errors import EXTRA_OF_PACKAGE

ROOT = Path(__file__).parents[2]
ROOMS = ("splitpoint", "hwprofiles", "codec", "protos", "decoding", "optimizer", "edge", "cloud")
ALWAYS = {"numpy", "yaml", "psutil", "dacite", "typer", "rich"}  # [project] dependencies


def imports() -> set[str]:
    """Top-level names of what the packages import, at module level or inside functions."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found


def test_every_import_has_an_extra_to_hint_at() -> None:
    others = imports() - set(sys.stdlib_module_names) - set(ROOMS) - ALWAYS
    assert others <= set(EXTRA_OF_PACKAGE)


def test_the_doctor_looks_for_every_package_of_every_extra() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    looked_for = {name for names in PACKAGES_OF_SIDE.values() for name in names}
    for extra in ("edge", "api", "cloud", "build", "simulate"):
        names = {re.split(r"[<>=\[]", wanted)[0] for wanted in extras[extra]} - {"splitpoint"}
        assert names <= looked_for, extra
    assert extras["all"] == ["splitpoint[edge,api,cloud,build,simulate]"]
    assert set(EXTRA_OF_PACKAGE.values()) <= set(extras)


def test_the_doctor_says_which_kernels_are_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "codec kernel" in said
    assert "8-bit server kernel" in said


def test_a_compiled_kernel_of_another_time_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("codec.kernel._kernel")
    if spec is None:
        pytest.skip("no compiled kernel to stand in for an older one")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(native, "load_kernel", load_kernel.__wrapped__)
    assert native.load.__wrapped__() is None
