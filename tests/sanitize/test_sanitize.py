"""`make sanitize` fails on any report, also one that the command hides, and skips in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.sanitize import sanitize
from tests.sanitize.fuzz_layers import spoil
from tests.sanitize.sanitize import Check

needs_sanitizers = pytest.mark.skipif(
    sanitize.what_is_missing() is not None, reason="no gcc with sanitizers"
)
PLANTED = """
#include <limits.h>
int add(int value) { return value + INT_MAX; }
int main(int count, char **names) { return add(count) == 5; }
"""


def test_without_gcc_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert sanitize.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("sanitize: skipped")


@needs_sanitizers
def test_an_overflow_is_a_report_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "planted.c").write_text(PLANTED)
    flags = [flag for flag in sanitize._FLAGS if flag not in ("-shared", "-fPIC")]
    command = ["gcc", *flags, "planted.c", "-o", "planted"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert not sanitize.run(Check(name="a", command=(str(tmp_path / "planted"),)), tmp_path)
    assert "signed integer overflow" in capsys.readouterr().out


@needs_sanitizers
@pytest.mark.parametrize(
    ("code", "is_clean"),
    [
        ("pass", True),
        ("raise SystemExit(3)", False),
        ("import pathlib; pathlib.Path('reports/a/asan.1').write_text('a report')", False),
    ],
    ids=["clean", "exit status", "report of a child"],
)
def test_only_success_without_a_report_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, is_clean: bool
) -> None:
    monkeypatch.setattr(sanitize, "runtime", lambda name: "")  # this Python, without a preload
    check = Check(name="a", command=(sys.executable, "-c", code))
    assert sanitize.run(check, tmp_path) is is_clean


def test_every_test_and_driver_that_it_names_is_there() -> None:
    named = [*sanitize._CODEC_TESTS, *sanitize._CLOUD_TESTS]
    named += ["tests/sanitize/fuzz_layers.py", "tests/sanitize/fuzz_codec.py"]
    assert [name for name in named if not (sanitize.ROOT / name).exists()] == []


def test_the_corpus_does_spoil_the_rows_that_it_says() -> None:
    rows = np.ones((200, 7), dtype=np.float32)
    changed = spoil(np.random.default_rng(0), rows)
    assert 50 < changed.sum() < 150
    assert ((rows != 1).any(axis=1) == changed).all()
    assert not np.isfinite(rows[changed]).all(axis=1).all()
