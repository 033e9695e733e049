"""Compiled kernels: found by name, checked by ABI, declared once, remembered."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codec.kernel import library as codec_library
from codec.kernel.loader import CFunction, KernelSpec, load_kernel

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(
    shutil.which("gcc") is None or not sys.platform.startswith("linux"), reason="needs gcc on Linux"
)
@pytest.mark.parametrize("folder", ["codec/kernel", "cloud/kernel"])
def test_a_kernel_compiles_without_pythons_headers(folder: str, tmp_path: Path) -> None:
    library = tmp_path / "kernel.so"
    command = ["gcc", "-O1", "-Wno-psabi", "-pthread", "-shared", "-fPIC"]
    source = str(ROOT / folder / "kernel.c")
    subprocess.run([*command, source, "-o", str(library)], check=True, timeout=120)
    abi = {"codec/kernel": "codec_abi", "cloud/kernel": "sp_layout"}[folder]
    assert getattr(ctypes.CDLL(str(library)), abi)(0) >= 1


class ExportedFunction:
    """What ctypes gives for an exported function; `answers` by first argument."""

    def __init__(self, answers: tuple[int, ...] = ()) -> None:
        self.restype: Any = ctypes.c_int
        self.argtypes: Any = None
        self._answers = answers

    def __call__(self, what: int) -> int:
        return self._answers[what]


class Library:
    def __init__(self, *names: str, abi: tuple[int, ...]) -> None:
        self.abi_of = ExportedFunction(abi)
        for name in names:
            setattr(self, name, ExportedFunction())


def spec_of(*names: str, abi: tuple[int, ...] = (7, 40)) -> KernelSpec:
    functions = tuple(
        CFunction(name=name, result=ctypes.c_int64, arguments=(ctypes.c_void_p,)) for name in names
    )
    return KernelSpec(
        module="some._kernel", abi_function="abi_of", abi=abi, functions=functions, without="slow"
    )


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every module of the name is found; the list tells which files were opened."""
    paths: list[str] = []
    found = importlib.machinery.ModuleSpec("some._kernel", None, origin="/some/_kernel.so")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    return paths


def give(monkeypatch: pytest.MonkeyPatch, opened: list[str], library: Library) -> None:
    def open_library(path: str) -> Library:
        opened.append(path)
        return library

    monkeypatch.setattr(ctypes, "CDLL", open_library)


def test_a_kernel_of_the_right_abi_is_opened_once_and_its_functions_are_declared(
    monkeypatch: pytest.MonkeyPatch, opened: list[str]
) -> None:
    library = Library("work", abi=(7, 40))
    give(monkeypatch, opened, library)
    spec = spec_of("work")
    for _ in range(2):
        assert vars(load_kernel(spec)) == vars(library)
    assert opened == ["/some/_kernel.so"]
    work: ExportedFunction = vars(library)["work"]
    assert work.restype is ctypes.c_int64
    assert work.argtypes == (ctypes.c_void_p,)


@pytest.mark.parametrize(
    ("names", "abi"),
    [(("work",), (8, 40)), (("work",), (7, 48)), (("other",), (7, 40))],
    ids=["another ABI number", "another structure size", "a function is missing"],
)
def test_a_kernel_of_other_sources_is_left_alone_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
    opened: list[str],
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
    abi: tuple[int, ...],
) -> None:
    give(monkeypatch, opened, Library(*names, abi=abi))
    spec = spec_of("work")
    assert load_kernel(spec) is None
    assert load_kernel(spec) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "rebuild" in record.message
    assert "slow" in record.message


def test_a_kernel_from_before_abi_numbers_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    library = Library("work", abi=(7, 40))
    del library.abi_of
    give(monkeypatch, opened, library)
    assert load_kernel(spec_of("work")) is None
    assert "rebuild" in caplog.text


def test_a_file_that_is_no_library_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str) -> ctypes.CDLL:
        raise OSError("wrong ELF class")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert load_kernel(spec_of("work")) is None
    assert "wrong ELF class" in caplog.text


def test_a_kernel_that_was_never_compiled_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    spec = KernelSpec(
        module="codec.kernel.no_such_kernel", abi_function="f", abi=(1,), functions=(), without="-"
    )
    assert load_kernel(spec) is None
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [("codec.kernel.library", "CODEC_KERNEL"), ("cloud.kernel.library", "_KERNEL")],
    ids=["codec", "cloud"],
)
def test_a_compiled_kernel_of_this_project_has_the_abi_its_caller_expects(
    module: str, name: str
) -> None:
    spec: KernelSpec = getattr(pytest.importorskip(module, reason="no torch here"), name)
    if importlib.util.find_spec(spec.module) is None:
        pytest.skip("kernel not compiled")
    assert load_kernel(spec) is not None


def test_without_a_kernel_a_caller_that_forces_it_gets_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codec_library, "load_kernel", lambda spec: None)
    assert not codec_library.is_compiled()
    with pytest.raises(RuntimeError, match="codec kernel"):
        codec_library.the_kernel()
