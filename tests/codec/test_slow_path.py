"""A missing kernel is said once, with what it costs here and what to do on this very system."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Iterator

import pytest

from codec import slow_path
from codec.entropy import rans, trellis
from codec.kernel import remedy
from codec.ladder import Ladder

WHEEL = "splitpoint-*-manylinux_2_28_aarch64.whl"


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (slow_path, rans, trellis):
        monkeypatch.setattr(module, "is_compiled", lambda: False)
    slow_path._warned().clear()
    yield
    slow_path._warned().clear()


@pytest.mark.usefixtures("without_kernel")
@pytest.mark.parametrize("level", ["lossless", "coarse", "tabq"])
def test_a_missing_kernel_is_one_warning_with_a_measured_cost_and_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ladder: Ladder,
    level: str,
) -> None:
    monkeypatch.setattr(slow_path, "remedy", lambda: "do this")
    monkeypatch.setattr(slow_path, "row_seconds", lambda *_: (0.023, 0.5))
    for _ in range(2):
        slow_path.warn_without_kernel(ladder, level)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "encoding" in record.message
    assert f"23 ms slower at {level}" in record.message
    assert record.message.endswith("to fix: do this")


def test_with_the_kernel_nothing_is_measured_or_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ladder: Ladder
) -> None:
    monkeypatch.setattr(slow_path, "is_compiled", lambda: True)
    monkeypatch.setattr(slow_path, "row_seconds", None)
    slow_path.warn_without_kernel(ladder, "coarse")
    assert caplog.records == []


@pytest.mark.usefixtures("without_kernel")
def test_a_row_is_really_encoded_and_decoded(ladder: Ladder) -> None:
    encode_s, decode_s = slow_path.row_seconds(ladder, "coarse")
    assert encode_s > 0
    assert decode_s > 0
    assert "decoding in numpy" in slow_path.slow_path_line(decode_s, "coarse", decodes=True)


def system(
    monkeypatch: pytest.MonkeyPatch, name: str, processor: str, tools: set[str], glibc: str = "2.36"
) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", glibc) if glibc else ("", ""))
    monkeypatch.setattr(shutil, "which", lambda tool: tool if tool in tools else None)


def test_the_remedy_names_the_wheel_and_the_package_manager_of_this_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    system(monkeypatch, "Linux", "aarch64", {"apt-get"})
    assert WHEEL in remedy.remedy()
    assert "apt-get install gcc libc6-dev" in remedy.remedy()
    system(monkeypatch, "Linux", "aarch64", {"apt-get", "clang"})
    assert "clang is there" in remedy.remedy()
    assert "apt-get" not in remedy.remedy()
    system(monkeypatch, "Linux", "aarch64", {"apt-get"}, glibc="2.27")
    assert "wheel" not in remedy.remedy()
    system(monkeypatch, "Linux", "aarch64", {"apk"}, glibc="")
    assert remedy.remedy().startswith("apk add gcc musl-dev")
    system(monkeypatch, "Darwin", "arm64", {"xcode-select"})
    assert "macosx_13_0_arm64" in remedy.remedy()
    system(monkeypatch, "Linux", "riscv64", set())
    assert remedy.remedy().startswith("install a C compiler")
    system(monkeypatch, "Linux", "aarch64", set())
    monkeypatch.setattr("sys.maxsize", 2**31 - 1)
    assert "wheel" not in remedy.remedy()


def test_the_wheels_that_it_names_are_those_that_are_built() -> None:
    from tests.deploy.test_wheel_checks import ROOT, loaded

    targets = loaded(ROOT / "deploy/wheels/build_wheels.py").TARGETS
    assert {target.tag for target in targets.values()} == set(remedy.WHEELS.values())
