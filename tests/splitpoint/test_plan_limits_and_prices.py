"""What a plan is held to, what it costs, and what it stands beside, as a user meets them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.profiles.catalog import device_to_yaml, load_device
from hwprofiles.profiles.device import CodecSpeed
from optimizer.artifacts.plan import load_plan
from splitpoint.cli import main
from tests.optimizer.hot_devices import hot
from tests.splitpoint.plans import FASTEST, PI, SMOL, planned, refused

DEFAULT = ("plan", "--model", "llama-3.1-8b", "--edge", "raspberry-pi-5-8gb", "--cloud", "l4-24gb")
# Too little for the whole model on the device.
TIGHT = (*DEFAULT, "--link", "wifi", "--edge-memory", "4GiB")


def test_with_a_price_the_least_cost_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("plan", "--model", "smollm2-135m", *PI, "--link", "4g")
    found = planned(capsys, *asked, "--cloud-price", "2", "--energy-price", "0.3")
    assert found["prices"] == {
        "cloud_per_hour": 2.0,
        "energy_per_kwh": 0.3,
        "edge_watts": 25.0,
        "edge_watts_measured": False,
    }
    costs = {row["what"]: row["cost_per_million_tokens"] for row in found["alternatives"]}
    kept = [row for row in found["alternatives"] if not row["broken"]]
    assert min(row["cost_per_million_tokens"] for row in kept) >= 0.98 * costs["this plan"]
    assert main([*asked, "--cloud-price", "2"]) == 0
    assert "cost per million tokens" in capsys.readouterr().out


def test_energy_cost_and_the_rate_that_lasts_are_promised_or_no_sensor_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metered = tmp_path / "metered.yaml"
    pi = load_device("raspberry-pi-5-8gb")
    metered.write_text(device_to_yaml(hot(pi, share=0.8, watts=6.5, idle=3.0)))
    common = ("plan", "--model", "smollm2-135m", "--cloud", "a100-80gb", "--link", "4g")
    asked = (*common, "--edge", str(metered), "--cloud-price", "2", "--energy-price", "0.3")
    found = planned(capsys, *asked, "--out", str(tmp_path / "plan.yaml"))["predicted"]
    each = found["energy"]["joules_per_token"]
    assert each["p10"] < each["p50"] < each["p90"]
    assert 3.0 * found["tbt_s"] <= each["p50"] <= 6.5 * found["tbt_s"]
    assert found["cost"]["per_million_tokens"]["p50"] > 0
    assert found["lasting"]["tokens_per_s"]["p50"] == pytest.approx(1 / found["tbt_s"])
    kept = load_plan(tmp_path / "plan.yaml").predicted
    assert kept is not None
    assert kept.energy is not None
    assert kept.energy.joules_per_token.p50 == each["p50"]
    assert main(list(asked)) == 0
    said = capsys.readouterr().out
    assert "energy a token" in said
    assert "ina3221 VDD_IN (board); prompt and" in said
    assert "no sensor" not in said
    plain = (*common, "--edge", "raspberry-pi-5-8gb")
    assert planned(capsys, *plain)["predicted"]["energy"] is None
    assert main([*plain, "--out", str(tmp_path / "plain.yaml")]) == 0
    said = capsys.readouterr().out
    assert "no sensor" in said
    assert "not measured" in said
    text = (tmp_path / "plain.yaml").read_text()  # earlier versions read this
    assert not {"energy", "cost", "lasting", "max_joules_per_token"} & set(text.split(":"))


def test_energy_and_cost_are_limits_also_at_a_quantile(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metered = tmp_path / "metered.yaml"
    pi = load_device("raspberry-pi-5-8gb")
    metered.write_text(device_to_yaml(hot(pi, share=0.8, watts=6.5, idle=3.0)))
    machines = ("--edge", str(metered), "--cloud", "a100-80gb", "--link", "4g")
    asked = ("plan", "--model", "smollm2-135m", *machines, "--split", "8", *FASTEST)
    free = planned(capsys, *asked)["predicted"]["energy"]["joules_per_token"]
    between = str((free["p50"] * free["p90"]) ** 0.5)
    assert planned(capsys, *asked, "--max-energy", between)["limits"]["max_joules_per_token"]
    status, line = refused(capsys, *asked, "--max-energy", between, "--quantile", "0.9")
    assert (status, "energy a token" in line) == (1, True)
    priced = (*asked, "--cloud-price", "2")
    cost = planned(capsys, *priced)["predicted"]["cost"]["per_million_tokens"]
    assert planned(capsys, *priced, "--max-cost", str(1.01 * cost["p50"]))
    status, line = refused(capsys, *priced, "--max-cost", str(0.5 * cost["p10"]))
    assert (status, "cost" in line) == (1, True)
    status, line = refused(capsys, *SMOL, "--link", "4g", "--max-energy", "1")
    assert (status, "no sensor: the profile raspberry-pi-5-8gb" in line) == (1, True)
    status, line = refused(capsys, *asked, "--max-cost", "1")
    assert (status, "needs a price" in line) == (1, True)


def test_without_a_price_nothing_is_said_of_cost(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("plan", "--model", "smollm2-135m", *PI, "--link", "4g", "--pareto")
    found = planned(capsys, *asked)
    assert "prices" not in found
    assert not any("cost_per_million_tokens" in row for row in found["alternatives"])
    assert not any("cost" in row for row in found["pareto"])
    for wrong, said in (
        (("--objective", "cost"), "needs a --cloud-price"),
        (("--cloud-price", "-1"), "must be a finite number"),
    ):
        status, line = refused(capsys, *asked, *wrong)
        assert status == 2
        assert said in line


def test_a_plan_says_which_watts_count_and_which_speed_lasts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cool, warm = tmp_path / "cool.yaml", tmp_path / "warm.yaml"
    pi = load_device("raspberry-pi-5-8gb")
    cool.write_text(device_to_yaml(hot(pi, share=0.95)))
    warm.write_text(device_to_yaml(hot(pi, share=0.5, watts=6.5)))
    said, found = {}, {}
    for edge in (cool, warm):
        asked = ["plan", "--model", "smollm2-135m", "--edge", str(edge), "--cloud", "a100-80gb"]
        asked += ["--link", "4g", "--split", "12", "--energy-price", "0.3", "--json"]
        assert main(asked) == 0
        captured = capsys.readouterr()
        said[edge], found[edge] = captured.err, json.loads(captured.out)
    assert "counted with 25 W, the most that its profile states" in said[cool]
    assert "of its speed" not in said[cool]
    assert "counted with 6.5 W, measured under the front's load by ina3221 VDD_IN" in said[warm]
    assert "keeps 50% of its speed after 80 s of work" in said[warm]
    assert found[warm]["prices"]["edge_watts"] == 6.5
    steps = [found[edge]["predicted"]["step"]["front_s"] for edge in (cool, warm)]
    assert steps[1] == pytest.approx(steps[0] * 0.95 / 0.5)
    assert found[warm]["predicted"]["ttft_s"] == found[cool]["predicted"]["ttft_s"]


def test_a_device_without_watts_leaves_energy_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    edge = tmp_path / "edge.yaml"
    edge.write_text(device_to_yaml(replace(load_device("raspberry-pi-5-8gb"), power=None)))
    machines = ("--edge", str(edge), "--cloud", "a100-80gb", "--link", "4g")
    asked = ("plan", "--model", "smollm2-135m", *machines, "--energy-price", "0.3")
    assert main([*asked, "--cloud-price", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert "the device's energy is left out" in captured.err
    assert json.loads(captured.out)["prices"]["energy_per_kwh"] is None
    status, line = refused(capsys, *asked)
    assert status == 1
    assert "states no watts" in line


def test_a_plan_says_where_prompts_are_computed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "plan.yaml"
    asked = (*SMOL, "--link", "4g", "--split", "8-9", "--back-from", "0", "--out", str(out))
    found = planned(capsys, *asked, "--prefill", "auto")
    assert found["prefill"] in ("cloud", "both")
    assert load_plan(out).prefill == found["prefill"]
    assert {row["prefill"] for row in found["alternatives"] if row["split"] in (8, 9)} <= {
        "cloud",
        "both",
    }
    on_edge = planned(capsys, *asked)
    assert on_edge["prefill"] == "edge"  # the default changes no token
    assert "prefill:" not in out.read_text()
    assert found["predicted"]["ttft_s"] < on_edge["predicted"]["ttft_s"]
    assert main([*asked, "--prefill", "cloud"]) == 0
    shown = capsys.readouterr().out
    assert "cloud: token ids go up" in shown
    assert ", prefill cloud" in shown
    status, line = refused(capsys, *SMOL, "--link", "4g", "--prefill", "cloud")
    assert status == 2
    assert "--back-from 0" in line


def test_a_plan_shows_what_it_stands_beside(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *TIGHT)
    rows = {row["what"]: row for row in found["alternatives"]}
    plan, cloud, device = (
        rows[name] for name in ("this plan", "all in the cloud", "all on the device")
    )
    assert plan["split"] == found["split"] > 0 == cloud["split"]
    assert plan["cloud_s_per_token"] == pytest.approx(found["predicted"]["cloud_s_per_token"])
    assert plan["cloud_s_per_token"] < cloud["cloud_s_per_token"]
    assert cloud["uplink_bytes_per_token"] < 50  # ids, no hidden state
    assert "edge memory" in device["broken"]
    assert "all layers on the device would break the limit on edge memory" in found["why"]
    assert main([*TIGHT]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "What else there is" in said
    assert found["why"] in said


def test_default_limits_that_nothing_keeps_are_lifted_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*DEFAULT, "--link", "3g", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["limits"]["max_tbt_s"] is None
    assert found["predicted"]["tbt_s"] > 0.15
    assert "no plan keeps the default limits here (0.15 s between tokens, 3 s" in captured.err


@pytest.mark.parametrize("limits", [("0.1", "1"), ("0.15", "3")])  # one pair is the defaults'
def test_limits_that_were_asked_for_are_never_lifted(
    capsys: pytest.CaptureFixture[str], limits: tuple[str, str]
) -> None:
    tbt, ttft = limits
    assert main([*DEFAULT, "--link", "3g", "--max-tbt", tbt, "--max-ttft", ttft]) == 1
    assert "no configuration keeps all limits" in capsys.readouterr().err


def test_only_what_was_not_asked_for_is_lifted_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = ("--max-tbt", "none", "--objective", "cloud-cost")
    assert main([*DEFAULT, "--link", "4g", *limits, "--max-quality-drop", "none", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["limits"]["max_ttft_s"] == 3  # a plan keeps it, so it is not lifted
    long = ("--prompt-tokens", "1900", "--split", "4-8")
    assert main([*DEFAULT, "--link", "4g", *limits, *long, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["limits"]["max_ttft_s"] is None
    assert "(3 s to the first token), so they were lifted; set --max-ttft to" in captured.err
    fastest = planned(capsys, *DEFAULT, "--link", "4g", *FASTEST, *long)
    assert found["predicted"]["cloud_s_per_token"] < fastest["predicted"]["cloud_s_per_token"]


def test_a_plan_at_split_0_says_that_ids_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEFAULT, "--link", "wifi", "--objective", "tbt"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "0 (the server runs every layer, the device sends token ids)" in said


def test_a_profile_that_timed_the_codec_in_numpy_says_so_and_its_plan_counts_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    edge = load_device("raspberry-pi-5-8gb")
    codec = tuple(
        CodecSpeed(
            kind=kind, hidden_size=576, source=next(iter(edge.sources)), encode_fixed_s=0.023,
            encode_s_per_element=0.0, decode_fixed_s=0.0, decode_s_per_element=0.0,
        )
        for kind in ("lossless", "calibrated", "tabq")
    )  # fmt: skip
    seconds = {}
    for runs_in, speeds in (("compiled", ()), ("numpy", codec)):
        versions = {"codec_kernel": runs_in}
        slow = replace(edge, codec=speeds, platform=replace(edge.platform, versions=versions))
        path = tmp_path / f"{runs_in}.yaml"
        path.write_text(device_to_yaml(slow), encoding="utf-8")
        arguments = ("plan", "--model", "smollm2-135m", "--edge", str(path), *PI[2:], *FASTEST)
        given = ("--max-quality-drop", "none", "--link", "lan", "--split", "5", "--json")
        assert main([*arguments, *given]) == 0
        told = capsys.readouterr()
        assert ("without the codec's compiled kernel" in told.err) is (runs_in == "numpy")
        seconds[runs_in] = json.loads(told.out)["predicted"]["tbt_s"]
    assert seconds["numpy"] - seconds["compiled"] > 0.02


WHOLE_8B = (
    "plan", "--model", "llama-3.1-8b", *PI, *FASTEST, "--link", "4g", "--split", "32",
    "--max-quality-drop", "none",
)  # fmt: skip


def test_large_blocks_of_weights_are_taken_only_where_nothing_else_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short, long = tmp_path / "short.yaml", tmp_path / "long.yaml"
    roomy = planned(capsys, *WHOLE_8B, "--max-tokens", "512", "--out", str(short))
    tight = planned(capsys, *WHOLE_8B, "--max-tokens", "24000", "--out", str(long))
    assert load_plan(short).weight_blocks == "small"
    assert "weight_blocks" not in short.read_text(encoding="utf-8")
    assert load_plan(long).weight_blocks == "large"
    drops = [found["predicted"]["quality_drop_pct"] for found in (roomy, tight)]
    assert drops[1] > drops[0] + 4  # half as much again of what 4 bits lose
    assert main([*WHOLE_8B, "--max-tokens", "24000"]) == 0
    assert "64 weights and more share a scale" in " ".join(capsys.readouterr().out.split())
