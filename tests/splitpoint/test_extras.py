"""Every package that the code imports is installed by an extra, and the hints name that extra."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import typer

from cloud.kernel import library as native
from codec.kernel.loader import load_kernel
from splitpoint import cli
from splitpoint.cli import main
from splitpoint.commands import doctor as doctor_command
from splitpoint.commands import profile as profile_command
from splitpoint.commands.doctor import PACKAGES_OF_SIDE
from splitpoint.errors import EXTRA_OF_COMMAND, EXTRA_OF_PACKAGE

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
    assert "16-bit fronts" in said


def test_a_compiled_kernel_of_another_time_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("codec.kernel._kernel")
    if spec is None:
        pytest.skip("no compiled kernel to stand in for an older one")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(native, "load_kernel", load_kernel.__wrapped__)
    assert native.load.__wrapped__() is None


def hints() -> set[str]:
    """Every "splitpoint[...]" that the code can print."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            found |= set(re.findall(r"splitpoint\[[a-z,]+\]", path.read_text(encoding="utf-8")))
    return found


def test_every_hint_names_an_extra_that_there_is() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {name for hint in hints() for name in hint[len("splitpoint[") : -1].split(",")}
    assert named | set(EXTRA_OF_COMMAND.values()) <= set(project["optional-dependencies"])
    assert "edge" in named


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("build", "torch", "build"),
        ("serve", "torch", "cloud"),
        ("run", "onnxruntime", "edge"),
        ("api", "onnxruntime", "api"),
        ("simulate", "simpy", "simulate"),
        ("run", "llguidance", "grammar"),
        ("profile", "torch", "cloud"),
        ("plan", "matplotlib", "simulate"),
    ],
)
def test_a_missing_package_is_answered_with_the_extra_of_the_command(
    command: str,
    package: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(names: object) -> object:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    fails = typer.Typer()
    monkeypatch.setattr(cli, "make_app", lambda names: fails)
    fails.command(command)(lambda: missing(()))
    fails.command("another")(lambda: None)
    assert main([command]) == 1
    assert capsys.readouterr().err == (
        f"splitpoint: error: this command needs the package '{package}': "
        f"pip install 'splitpoint[{extra}]'\n"
    )


def test_the_doctor_shows_the_brackets_of_its_hints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor_command, "version", nothing)
    monkeypatch.setenv("COLUMNS", "120")
    main(["doctor"])
    said = capsys.readouterr().out
    for side in PACKAGES_OF_SIDE:
        assert f"pip install 'splitpoint[{side}]'" in said


def test_a_profile_without_its_library_shows_the_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_command, "find_spec", lambda name: None)
    assert main(["profile", "device"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'splitpoint[edge]' or 'splitpoint[cloud]'" in said
