"""Wheels: which compiler takes part, what a wheel is called, and which libraries are refused."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.deploy.dockerfile import ROOT

X86, ARM, MACH_X86, MACH_ARM = 62, 183, 0x01000007, 0x0100000C


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded(ROOT / "deploy/wheels/build_wheels.py")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", machine)


def mach(cpu: int, oldest: tuple[int, int], *, signed: bool) -> bytes:
    version = oldest[0] << 16 | oldest[1] << 8
    commands = [struct.pack("<IIIIII", 0x32, 24, 1, version, 0, 0)]
    if signed:
        commands.append(struct.pack("<IIII", 0x1D, 16, 0, 0))
    head = struct.pack("<IIIIIIII", 0xFEEDFACF, cpu, 0, 6, len(commands), 0, 0, 0)
    return head + b"".join(commands)


def wheel_of(path: Path, *libraries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, library in zip(("codec", "cloud"), libraries, strict=False):
            archive.writestr(f"{name}/kernel/_kernel.abi3.so", library)
    return path


def test_a_wheel_without_a_kernel_or_with_another_processors_is_refused(
    script: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "splitpoint.whl"
    with pytest.raises(SystemExit, match="holds no cloud/kernel"):
        script.check_libraries(wheel_of(path, elf(ARM)), "linux-aarch64")
    with pytest.raises(SystemExit, match=r"cloud/kernel.*is for x86_64, not aarch64"):
        script.check_libraries(wheel_of(path, elf(ARM), elf(X86)), "linux-aarch64")


def test_a_library_for_macos_is_old_enough_and_signed(script: ModuleType, tmp_path: Path) -> None:
    good = mach(MACH_ARM, (13, 0), signed=True)
    script.check_libraries(wheel_of(tmp_path / "a.whl", good, good), "macos-arm64")
    assert script.mach_cpu(mach(MACH_X86, (12, 0), signed=False)) == "x86_64"
    assert "without a signature" in script.mach_cpu(mach(MACH_ARM, (13, 0), signed=False))
    assert "macOS (14, 0)" in script.mach_cpu(mach(MACH_ARM, (14, 0), signed=True))
    assert script.mach_cpu(elf(ARM) + bytes(16)) == "no 64-bit Mach-O file"


def test_a_kernel_compiles_with_any_compiler_and_its_wheel_names_no_python(tmp_path: Path) -> None:
    """A compiler that is only called `cc`, and writes down how it was called."""
    fake = tmp_path / "bin" / "cc"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\n', encoding="utf-8")
    fake.chmod(0o755)
    code = (
        "import sysconfig, runpy, sys\n"
        "sysconfig.get_config_vars()['CC'] = 'a-compiler-of-elsewhere -pthread'\n"
        f"sys.argv = ['setup.py', '-q', 'build_ext', '--build-lib', {str(tmp_path)!r}]\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": str(fake.parent) + ":/bin:/usr/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for room in ("codec", "cloud"):
        called = (tmp_path / room / "kernel" / "_kernel.abi3.so").read_text(encoding="utf-8")
        assert f"{room}/kernel/kernel.c" in called
        assert "-I" not in called
    if sys.platform == "linux":
        tag = "import runpy, sys\nsys.argv = ['setup.py', '-q', '--name']\n"
        tag += "found = runpy.run_path('setup.py')['TagWheel']\n"
        tag += "from setuptools import Distribution, Extension\n"
        tag += "d = Distribution({'name': 'x', 'ext_modules': [Extension('a', ['a.c'])]})\n"
        tag += "c = found(d); c.finalize_options(); print(c.get_tag()[:2])\n"
        named = subprocess.run(
            [sys.executable, "-c", tag], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert named.stdout.splitlines()[-1] == "('py3', 'none')"
