"""The check of a GPU says all that it found, whatever fails: minutes on a GPU are few."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.server import gpu_check
from benchmarks.server.gpu_goals import GOALS, goals_of
from benchmarks.server.gpu_machine import DryMachine
from benchmarks.server.gpu_parity import BASIC_FAMILY, FAMILIES
from benchmarks.server.gpu_speed import DRY_SPEED, KINDS, Rates, measure_kind

ROW = {
    "bound_s": 1e-3,
    "core_s": 1.3e-3,
    "graph_s": 1.4e-3,
    "host_s": 1e-4,
    "p50_s": 1.5e-3,
    "p99_s": 1.6e-3,
}
FOUND = {
    "prefill": {"share_of_product_rate": 0.5},
    **{f"decode {n}": {**ROW, "tokens_per_s": 1000.0 * n} for n in (1, 64, 128, 256)},
}


class Played:
    """The check with its parts replaced. begun: the parts that began, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.begun: list[str] = []
        self.replace("copy_rate", lambda _: "copies", 1e12)
        self.replace("product_rate", lambda _: "products", 1e14)
        self.replace("check_draws", lambda _: "draws", {"drawn tokens": True})
        self.replace("check_products", lambda _: "8-bit products", {})
        self.replace("check_family", lambda *given: given[2], {"a family": True})
        self.replace("measure_kind", lambda *given: given[2], FOUND)
        self.replace("subprocess.run", lambda *_, **__: "overlap", None)

    def replace(self, name: str, part: Callable[..., str], answer: Any) -> None:
        """Let the function tell that its part began, and answer or raise."""

        def played(*given: Any, **options: Any) -> Any:
            self.begun.append(part(*given, **options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        self._patch.setattr(f"benchmarks.server.gpu_check.{name}", played)

    def run(self, *options: str) -> int:
        """The process's exit status."""
        self._patch.setattr(sys, "argv", ["gpu_check", "--dry-run", *options])
        try:
            gpu_check.main()
        except SystemExit as ended:
            return 1 if isinstance(ended.code, str) else int(ended.code or 0)
        return 0


@pytest.fixture(name="played")
def make_played(monkeypatch: pytest.MonkeyPatch) -> Played:
    return Played(monkeypatch)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_basics_come_before_what_matters_less(played: Played) -> None:
    played.run("--only-basics")
    assert played.begun == ["copies", "products", BASIC_FAMILY, "draws", "8-bit products", "bf16"]
    played.begun.clear()
    played.run()
    assert played.begun[:6] == [
        "copies",
        "products",
        BASIC_FAMILY,
        "draws",
        "8-bit products",
        "bf16",
    ]
    assert sorted(played.begun[6:]) == sorted(
        {*FAMILIES, *KINDS, "overlap"} - {BASIC_FAMILY, "bf16"}
    )


def test_a_part_that_fails_is_named_and_the_others_are_told(
    played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    played.replace("check_family", lambda *given: given[2], RuntimeError("no kernel\nmore"))
    assert played.run("--only-basics") == 1
    found = last_line(capsys)
    assert found["failed"] == {BASIC_FAMILY: "RuntimeError: no kernel"}
    assert found["parity"] == {"drawn tokens": True}
    assert found["speed"]["bf16"] == FOUND


def test_a_comparison_that_does_not_hold_fails_the_check(
    played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    assert played.run("--only-basics") == 0
    played.replace("check_draws", lambda _: "draws", {"drawn tokens": False})
    assert played.run("--only-basics") == 1
    assert last_line(capsys)["failed"] == {}


def test_no_part_begins_after_the_limit(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    assert played.run("--limit-s", "0") == 0
    assert played.begun == []
    assert {"copies", "bf16", "gpt-oss", "kernels that overlap"} <= set(
        last_line(capsys)["skipped"]
    )


def test_a_goal_says_whether_it_was_met() -> None:
    met = goals_of(FOUND)
    assert {name: goal["met"] for name, goal in met.items()} == {
        goal.name: not goal.name.startswith(("1 session: the step", "prefill")) for goal in GOALS
    }
    assert goals_of(None) == {}
    assert "256 sessions: p99 over p50" not in goals_of({"decode 64": ROW})


def test_a_dry_run_of_steps_and_a_prefill_gives_every_figure() -> None:
    rates = Rates(copy=1e9, flops=1e9)
    found = measure_kind(DryMachine(), DRY_SPEED, "bf16, KV fp8", (64,), rates)
    assert {*ROW, "launch_s", "step_s", "tokens_per_s", "kv_bytes"} <= set(found["decode 1"])
    assert found["prefill"]["share_of_product_rate"] > 0
