"""`splitpoint simulate` prints JSON or tables, and says what is wrong with its input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitpoint.cli import main
from tests.optimizer.simulate.scenes import PLAN

SCENARIO = """
name: two groups
duration_s: 20
deployment: {model: smollm2-135m, split: 10}
clients:
  - name: near
    count: 3
    devices: {raspberry-pi-5-8gb: 1}
    link: {mix: {lan: 1}}
    arrivals: {kind: closed, think_s: 1}
    prompt_tokens: {median: 50}
    output_tokens: {median: 20}
  - name: far
    count: 1
    devices: {raspberry-pi-4-4gb: 1}
    link: {mix: {4g: 1}}
    arrivals: {kind: poisson, rate_per_s: 0.2}
    prompt_tokens: {median: 50, p95: 100}
    output_tokens: {median: 20}
servers: {device: l4-24gb}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["simulate", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, object] = json.loads(out)
    return found


def test_json_has_the_quantiles_and_shares(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.to_yaml())
    found = simulated(
        capsys, str(plan), "--link", "4g", "--clients", "2", "--duration", "20",
        "--budget-ttft", "5", "--budget-tbt", "0.1",
    )  # fmt: skip
    for name in ("ttft_s", "tbt_s", "e2e_s"):
        spread = found[name]
        assert isinstance(spread, dict)
        assert set(spread) == {"p50", "p95", "p99"}
        assert 0 < spread["p50"] <= spread["p95"] <= spread["p99"]
    within, busy = found["within_budget"], found["server_utilisation"]
    assert isinstance(within, float)
    assert isinstance(busy, float)
    assert 0 < within < 1
    assert 0 < busy < 1
    assert found["tokens_per_s"]
    assert found["clients"] == 2


def test_a_scenario_brings_its_own_deployment_and_options_change_it(
    capsys: pytest.CaptureFixture[str], scenario: Path
) -> None:
    found = simulated(capsys, "--scenario", str(scenario))
    assert found["clients"] == 4
    more = simulated(capsys, "--scenario", str(scenario), "--clients", "8", "--servers", "2")
    assert (more["clients"], more["servers"]) == (8, 2)
    assert (
        simulated(capsys, "--scenario", str(scenario), "--seed", "1")["ttft_s"] != found["ttft_s"]
    )


def test_the_fewest_servers_are_found_and_simulated(
    capsys: pytest.CaptureFixture[str], scenario: Path, tmp_path: Path
) -> None:
    given = ("--scenario", str(scenario), "--servers", "auto", "--no-advice", "--budget-tbt", "5")
    found = simulated(capsys, *given, "--out", str(tmp_path / "out"))
    fleet = found["fleet"]
    assert isinstance(fleet, dict)
    assert fleet["num_servers"] == found["servers"] == 1
    assert [point["kept"] for point in fleet["tried"]] == [True]
    assert (tmp_path / "out" / "fleet.csv").read_text().startswith("first_in_time,")
    assert main(["simulate", *given]) == 0
    assert "How many servers" in capsys.readouterr().out


@pytest.mark.parametrize("servers", ["0", "-1", "many", "1.5"])
def test_a_number_of_servers_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], scenario: Path, servers: str
) -> None:
    assert main(["simulate", "--scenario", str(scenario), "--servers", servers]) == 2
    assert "must be 1 or more, or auto" in " ".join(capsys.readouterr().err.split())


def test_a_workload_is_replayed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plan, load = tmp_path / "plan.yaml", tmp_path / "load.csv"
    plan.write_text(PLAN.to_yaml())
    load.write_text("t_s,prompt_tokens,output_tokens\n5,10,3\n6,20,4\n7.5,30,5\n")
    found = simulated(capsys, str(plan), "--workload", str(load), "--duration", "10")
    assert found["requests"] == {"asked": 3, "done": 3}
    assert found["tokens"] == 12
    load.write_text("t_s,prompt_tokens,output_tokens\n5,10,3\n6,none,4\n")
    assert main(["simulate", str(plan), "--workload", str(load)]) == 1
    assert "line 3: 'prompt_tokens'" in capsys.readouterr().err


def test_tables_for_people(capsys: pytest.CaptureFixture[str], scenario: Path) -> None:
    assert main(["simulate", "--scenario", str(scenario)]) == 0
    out = capsys.readouterr().out
    assert "Latency (simulated)" in out
    assert "first token" in out


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("duration_s: 20", "durations: 20"), "unknown key 'durations'"),
        (("count: 3", "count: 0"), "count must be at least 1"),
        (("lan: 1", "lan-party: 1"), "no link profile 'lan-party'"),
        (("l4-24gb", "l5"), "no device profile 'l5'"),
        (("model: smollm2-135m", "model: gpt-7"), "no model spec 'gpt-7'"),
        (("kind: poisson", "kind: posson"), "kind"),
        (("split: 10", "split: 31"), "the model has 30 layers"),
    ],
)
def test_what_is_wrong_with_a_scenario_is_said(
    capsys: pytest.CaptureFixture[str], scenario: Path, change: tuple[str, str], reason: str
) -> None:
    text = SCENARIO.replace(*change)
    assert text != SCENARIO
    scenario.write_text(text)
    assert main(["simulate", "--scenario", str(scenario)]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_without_plan_and_scenario_it_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate"]) == 2
    assert "plan.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--sweep", "clients=x"), "clients=x: not a value for clients"),
        (("--sweep", "clients=true"), "not a value for clients"),
        (("--duration", "inf"), "finite"),
    ],
)
def test_values_that_make_no_sense_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], scenario: Path, options: tuple[str, str], reason: str
) -> None:
    assert main(["simulate", "--scenario", str(scenario), *options]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert "internal error" not in error


def test_a_run_without_a_token_says_that_its_latencies_mean_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(SCENARIO.replace("think_s: 1", "think_s: 9e9").replace("0.2", "1e-9"))
    assert main(["simulate", "--scenario", str(scenario), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["tokens"] == 0
    assert "mean nothing" in captured.err
