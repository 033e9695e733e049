"""`--measure`, `--explain`, `profile refine` and `plan --check` as a user meets them."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.planning.wrong_profile import times_faster
from hwprofiles.profiles.catalog import device_to_yaml, load_device
from hwprofiles.sensors.registry import energy_meter
from optimizer.artifacts.bundle import PLAN_NAME
from optimizer.artifacts.plan import load_plan
from optimizer.measured.log import as_line, read_measurements
from optimizer.measured.record import MeasuredGeneration
from splitpoint.cli import main
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer
from tests.hwprofiles.sensors.trees import JETSON, write_tree
from tests.optimizer.hot_devices import hot
from tests.optimizer.measured import hours
from tests.splitpoint.test_cli import failing

PROMPT = "quixotic zebras juggle marmalade"
PROFILES = (
    "--edge-profile", "local-epyc-2core", "--cloud-profile", "local-epyc-2core-cloud",
    "--link-profile", "lan",
)  # fmt: skip
MACHINES = ("--edge", "local-epyc-2core", "--cloud", "local-epyc-2core-cloud")
LINK = ("--link", "rtt=20ms,up=20,down=48")


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.edge_bundle(2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """An hour of a device and a server."""
    path = tmp_path / "measured.jsonl"
    records = [*hours.generations(30), *hours.servings(20)]
    path.write_bytes(b"".join(as_line(record) for record in records))
    return path


def test_a_run_appends_its_figures_and_neither_text_nor_tokens(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    path = tmp_path / "measured.jsonl"
    common = ("run", bundle, "--server", server.address, "--prompt", PROMPT)
    arguments = (*common, "--max-new-tokens", 9, "--ignore-eos", "--measure", path, "--json")
    for _ in range(2):
        assert main(list(map(str, arguments))) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    first, second = read_measurements(path)
    assert isinstance(second, MeasuredGeneration)
    assert (second.program, second.num_tokens) == ("run", 9)
    assert second.prompt_tokens == answer["prompt_tokens"]
    assert second.ttft_s == answer["ttft_s"]
    assert second.uplink_bytes == answer["uplink_bytes"]
    assert second.plan == replace(load_plan(bundle / PLAN_NAME), predicted=None)
    decode = [step for step in second.steps if step.phase == "decode"]
    assert sum(step.num_steps * step.num_rows for step in decode) >= 8
    assert all(step.front_s > 0 and step.split == 2 for step in second.steps)
    assert first != second
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = path.read_text()
    for secret in (*PROMPT.split(), answer["text"].strip(), server.address, str(bundle)):
        assert secret not in said
    assert str(answer["tokens"])[1:-1] not in said
    assert not {"text", "tokens", "token_ids", "prompt"} & set(json.loads(said.splitlines()[0]))


def test_a_sensors_energy_is_logged_and_explained(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    server: RunningServer,
    tmp_path: Path,
) -> None:
    root = write_tree(tmp_path / "system", JETSON)  # 8 W all the time
    monkeypatch.setattr("edge.client.energy_meter", lambda: energy_meter(root, lambda _: ""))
    profile, log = tmp_path / "metered.yaml", tmp_path / "measured.jsonl"
    profile.write_text(device_to_yaml(hot(hours.EDGE, share=1.0, watts=9.0, idle=7.0)))
    profiles = ("--edge-profile", str(profile), *PROFILES[2:])
    common = ["run", str(bundle), "--server", server.address, "--prompt", PROMPT, "--draft", "off"]
    common += ["--max-new-tokens", "8", "--ignore-eos", "--measure", str(log), "--explain"]
    assert main([*common, *profiles, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (record,) = read_measurements(log)
    assert isinstance(record, MeasuredGeneration)
    assert record.energy is not None
    assert record.energy.sensor == "ina3221 VDD_IN (board)"
    assert record.energy.joules == pytest.approx(8.0 * record.energy.seconds, rel=1e-6)
    assert 0 < record.energy.busy_s < record.energy.seconds
    assert answer["energy_joules"] == record.energy.joules
    rows = {row["figure"]: row for row in answer["predicted"]}
    assert rows["energy of an answer"]["unit"] == "J"
    assert rows["energy of an answer"]["predicted_p10"] < rows["energy of an answer"]["predicted"]
    assert "energy_note" not in answer
    assert main([*common, *PROFILES]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "energy of an answer" not in said
    assert "no sensor in the device's profile" in said
    monkeypatch.setattr("edge.client.energy_meter", lambda: None)
    assert main([*common, *profiles, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["energy_joules"] is None
    assert "no sensor on the device" in answer["energy_note"]


def test_a_log_that_cannot_be_written_is_refused_before_anything_loads(
    capsys: pytest.CaptureFixture[str], bundle: Path, tmp_path: Path
) -> None:
    common = ("run", bundle, "--server", "127.0.0.1:1", "--prompt", "x", "--measure")
    status, line = failing(capsys, *common, tmp_path / "no" / "log")
    assert (status, line.endswith("No such file or directory")) == (1, True)
    status, line = failing(capsys, *common, tmp_path)
    assert status == 1
    assert str(tmp_path) in line


def test_explain_shows_predictions_of_profiles_beside_the_answer(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    common = ["run", str(bundle), "--server", server.address, "--prompt", PROMPT]
    common += ["--max-new-tokens", "8", "--ignore-eos", "--draft", "off", "--explain", *PROFILES]
    assert main([*common, "--json"]) == 0
    rows = {row["figure"]: row for row in json.loads(capsys.readouterr().out)["predicted"]}
    assert {"TTFT", "TBT", "front, one row", "wire, one row", "up a token", "edge memory"} <= {
        *rows
    }
    for row in rows.values():
        assert row["count"] == 1
        assert row["error"] == pytest.approx(row["predicted"] / row["p50"] - 1)
        within = "held" if abs(row["error"]) <= 0.1 else "nearly"
        assert row["verdict"] == (within if abs(row["error"]) <= 0.2 else "missed")
    assert main(common) == 0
    said = capsys.readouterr()
    assert "Predicted and measured" in said.err
    assert "predictions held (within 10%)" in said.err
    assert "Predicted" not in said.out


def test_explain_without_predictions_says_what_brings_them(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    common = ("run", bundle, "--server", server.address, "--prompt", "x")
    status, line = failing(capsys, *common, "--explain")
    assert status == 1
    assert "the bundle's plan has no predictions" in line
    assert "--edge-profile, --cloud-profile and --link-profile" in line
    status, line = failing(capsys, *common, "--explain", *PROFILES[:2])
    assert (status, "give all of" in line) == (2, True)
    status, line = failing(capsys, *common, *PROFILES)
    assert (status, "go with --explain" in line) == (2, True)


def test_refine_writes_a_profile_and_says_what_changed(
    capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path
) -> None:
    wrong, out = tmp_path / "wrong.yaml", tmp_path / "deep" / "right.yaml"
    wrong.write_text(device_to_yaml(times_faster(hours.EDGE, 1.5)))
    command = ["profile", "refine", str(wrong), "--from", str(log), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["used"]) == ("right", 30)
    assert found["left_out"] == {"of the server's side": 20}
    assert all(item["ratio"] == pytest.approx(1.5, rel=0.1) for item in found["factors"])
    assert load_device(out).name == "right"
    assert main(command) == 0
    said = capsys.readouterr().out
    for part in ("front, one row", "x 1.5", "20 records left out", "the link meanwhile", str(out)):
        assert part in said
    assert main(["profile", "show", str(out)]) == 0
    assert "derived: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["raspberry-pi-5-8gb"], "no record is of the machine of raspberry-pi-5-8gb"),
        (["no-such-board"], "no device profile 'no-such-board'"),
    ],
)
def test_refining_what_does_not_fit_is_one_line(
    capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    out = tmp_path / "new.yaml"
    status, line = failing(capsys, "profile", "refine", *arguments, "--from", log, "--out", out)
    assert status == 1
    assert said in line
    assert not out.exists()


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["plan", "--model", "smollm2-135m", *LINK, *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_check_says_which_predictions_held(
    capsys: pytest.CaptureFixture[str], log: Path, tmp_path: Path
) -> None:
    check = ("--check", str(log))
    (right,) = checked(capsys, *MACHINES, *check)
    assert (right["split"], right["level"], right["answers"]) == (10, "q3", 30)
    assert {row["verdict"] for row in right["figures"]} == {"held"}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(device_to_yaml(times_faster(hours.EDGE, 1.5)))
    others = ("--edge", str(wrong), *MACHINES[2:])
    (off,) = checked(capsys, *others, *check)
    verdicts = {row["figure"]: row["verdict"] for row in off["figures"]}
    assert verdicts["front, one row"] == "missed"
    assert verdicts["edge memory"] == "nearly"  # only the empty process is wrong
    assert verdicts["up a token"] == "held"
    command = ["plan", "--model", "smollm2-135m", *LINK, *check, "--strict"]
    assert main([*command, *MACHINES]) == 0
    assert main([*command, *others]) == 1
    said = capsys.readouterr().out
    assert "front, one row" in said
    assert "missed" in said


def test_a_log_of_another_model_is_no_check(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    command = ("plan", "--model", "llama-3.2-1b", *MACHINES, *LINK, "--check", log)
    status, line = failing(capsys, *command)
    assert status == 1
    assert "none of its 30 answers is of the model" in line
