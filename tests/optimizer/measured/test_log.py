"""The measurement log: what is written comes back, and nothing hostile gets in."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimizer.errors import MeasurementError
from optimizer.measured import log as measurement_log
from optimizer.measured.log import MeasurementLog, as_line, read_measurements
from optimizer.measured.record import Measured, bare_plan, history_class
from tests.optimizer.measured import hours

RECORDS: list[Measured] = [*hours.generations(3), *hours.servings(2)]


def written(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "measured.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "measured.jsonl"
    log = MeasurementLog(path)
    for record in RECORDS:
        log.append(record)
    assert read_measurements(path) == RECORDS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes().splitlines()) == len(RECORDS)
    assert all(json.loads(line)["format"] == 1 for line in path.read_text().splitlines())


def test_several_programs_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "measured.jsonl"

    def append() -> None:
        log = MeasurementLog(path)
        for _ in range(20):
            log.append(RECORDS[0])

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_measurements(path) == [RECORDS[0]] * 80


def test_a_log_never_grows_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = as_line(RECORDS[0])
    monkeypatch.setattr(measurement_log, "MOST_LOG_BYTES", 3 * len(line))
    log = MeasurementLog(tmp_path / "measured.jsonl")
    for _ in range(3):
        log.append(RECORDS[0])
    with pytest.raises(MeasurementError, match="full"):
        log.append(RECORDS[0])
    assert len(read_measurements(log.path)) == 3


def test_a_line_that_was_cut_short_is_not_joined_to_the_next(tmp_path: Path) -> None:
    first, second = as_line(RECORDS[0]), RECORDS[1]
    path = written(tmp_path, first, first[:40])
    assert read_measurements(path) == [RECORDS[0]]  # the last line is still being written
    MeasurementLog(path).append(second)
    with pytest.raises(MeasurementError, match=r"measured.jsonl: line 2: not valid JSON"):
        read_measurements(path)
    assert path.read_bytes().splitlines()[2] == as_line(second).strip()


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    values = json.loads(as_line(RECORDS[0]))
    change(values)
    return json.dumps(values).encode() + b"\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (changed(lambda v: v.update(ttft_s=float("nan"))), "NaN is no number"),
        (changed(lambda v: v.update(ttft_s=float("inf"))), "Infinity is no number"),
        (changed(lambda v: v.update(ttft_s=-1.0)), "must lie between 0 and 86400"),
        (changed(lambda v: v.update(ttft_s=1e9)), "must lie between 0 and 86400"),
        (changed(lambda v: v.update(ttft_s="0.1")), "must be a number"),
        (changed(lambda v: v.update(ttft_s=True)), "must be a number"),
        (changed(lambda v: v.update(num_tokens=0)), "must lie between 1 and"),
        (changed(lambda v: v.update(num_tokens=1.5)), "must be an integer"),
        (changed(lambda v: v.update(num_tokens=10**30)), "has more than 63 bits"),
        (changed(lambda v: v.update(peak_memory_bytes=1 << 60)), "peak_memory_bytes"),
        (changed(lambda v: v.update(date="yesterday")), "write it as 2026-01-31"),
        (changed(lambda v: v.update(program="sh")), "'program' must be one of"),
        (changed(lambda v: v.update(text="secret")), "unknown key 'text'"),
        (changed(lambda v: v.pop("machine")), "missing key 'machine'"),
        (changed(lambda v: v["machine"].update(processor="x" * 500)), "too long"),
        (changed(lambda v: v["machine"].update(processor="a\x1b[2J")), "not printable"),
        (changed(lambda v: v["machine"].update(engine="abacus")), "'machine.engine'"),
        (changed(lambda v: v["plan"]["partition"].update(split=99)), "split 99"),
        (changed(lambda v: v["steps"][0].update(front_s=-0.5)), "front_s"),
        (changed(lambda v: v["steps"][0].update(num_rows=0)), "num_rows"),
        (changed(lambda v: v.update(steps=(v["steps"] * 401)[:401])), "more than 400 entries"),
        (changed(lambda v: v.update(kind="rumour")), "kind 'rumour': one of generation, serving"),
        (changed(lambda v: v.update(kind=["generation"])), "one of generation, serving"),
        (changed(lambda v: v.update(format=2)), "format 2: this version reads 1; start a new log"),
        (changed(lambda v: v.pop("format")), "format None"),
        (changed(lambda v: v.update(format=True)), "format True"),
        (b"[1, 2]\n", "no JSON object"),
        (b"\xff\xfe\n", "not valid JSON"),
        (b"[" * 100_000 + b"\n", "nested deeper"),
        (b'{"format": 1, "format": 1}\n', "duplicate key"),
        (b" " * (300 << 10) + b"{}\n", "longer than 256 KiB"),
    ],
)
def test_a_hostile_line_is_refused_with_its_number(tmp_path: Path, line: bytes, said: str) -> None:
    path = written(tmp_path, as_line(RECORDS[1]), line)
    with pytest.raises(MeasurementError) as caught:
        read_measurements(path)
    assert f"{path}: line 2: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_file_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, *[as_line(RECORDS[0])] * 3)
    monkeypatch.setattr(measurement_log, "MOST_LOG_BYTES", 1000)
    with pytest.raises(MeasurementError, match="larger than"):
        read_measurements(path)


def test_what_is_no_file_is_refused_before_any_work(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, tmp_path / "missing" / "log.jsonl", Path("/dev/null")):
        with pytest.raises(MeasurementError):
            MeasurementLog(path)
    with pytest.raises(MeasurementError, match="No such file"):
        read_measurements(tmp_path / "absent.jsonl")


def test_a_record_names_no_file() -> None:
    from optimizer.artifacts.prediction import ProfilesUsed

    used = ProfilesUsed(edge="/home/ada/edge.yaml", cloud="cloud.yaml", link="my link")
    plan = bare_plan(replace(hours.PLAN, profiles=used, binding=("edge memory",)))
    assert plan == hours.PLAN


def test_histories_are_alike_within_a_factor_of_two() -> None:
    assert [history_class(n) for n in (0, 1, 2, 3, 4, 127, 128, 255)] == [0, 1, 2, 2, 3, 7, 8, 8]
