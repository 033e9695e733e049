"""`splitpoint plan` as a user meets it: a plan that build takes, and one line for nonsense."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import device_to_yaml, load_device
from optimizer.artifacts.bundle import open_bundle
from optimizer.artifacts.plan import load_plan
from optimizer.errors import BuildError
from optimizer.export.bundle_builder import for_model
from splitpoint.cli import main
from tests.conftest import ModelBench
from tests.splitpoint.plans import FASTEST, PI, SMOL, SMOL_WITH_LIMIT, planned, refused


def test_the_json_has_what_is_promised_and_the_plan_reads_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "plan.yaml"
    found = planned(capsys, *SMOL, "--link", "4g", "--edge-memory", "240MiB", "--out", str(out))
    promised = "split front_bits back_bits kv_bits level max_tokens predicted binding"
    assert set(promised.split()) <= set(found)
    predicted = (
        "edge_memory_bytes ttft_s tbt_s uplink_bytes_per_token quality_drop_pct cloud_s_per_token"
    )
    assert set(predicted.split()) <= set(found["predicted"])
    # A client's first request makes the connection: three round trips of the median link more.
    first_s, later_s = found["predicted"]["first_ttft_s"], found["predicted"]["ttft_s"]
    assert first_s - later_s > 2.9 * load_link("4g").rtt_s.p50
    assert found["binding"] == ["edge memory"]
    assert found["predicted"]["edge_memory_bytes"] <= 240 * 2**20
    plan = load_plan(out)
    assert plan.partition.split == found["split"]
    assert plan.predicted is not None
    assert plan.predicted.tbt_s == found["predicted"]["tbt_s"]
    assert plan.profiles is not None
    assert plan.profiles.link == "4g"
    # More memory helps, and says by how much; a better link is another price.
    prices = {price["change"]: price for price in found["shadow_prices"]}
    assert prices["64 MiB more edge memory"]["after"] < prices["64 MiB more edge memory"]["before"]
    assert prices["64 MiB more edge memory"]["split"] > found["split"]
    assert {"edge memory [bytes]"} <= {flip["quantity"] for flip in found["flips"]}


def test_a_flip_is_where_the_split_really_changes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMOL, "--link", "4g", "--edge-memory"]
    found = planned(capsys, *arguments, "160MiB")
    flip = next(
        flip
        for flip in found["flips"]
        if flip["quantity"] == "edge memory [bytes]" and flip["side"] == "above"
    )
    assert planned(capsys, *arguments, str(int(flip["value"] * 1.001)))["split"] == flip["split"]
    assert planned(capsys, *arguments, str(int(flip["value"] * 0.99)))["split"] == found["split"]


def test_a_bad_moment_of_the_link_predicts_worse(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMOL, "--link", "4g", "--split", "10"]
    median = planned(capsys, *arguments)["predicted"]
    bad = planned(capsys, *arguments, "--epsilon", "0.05")["predicted"]
    link = load_link("4g")
    assert bad["tbt_s"] - median["tbt_s"] > link.rtt_s.at(0.95) - link.rtt_s.p50
    assert bad["ttft_s"] > median["ttft_s"]


@pytest.mark.parametrize("objective", ["tbt", "ttft", "cloud-cost", "context", "quality"])
def test_every_objective_plans_and_prints_tables(
    capsys: pytest.CaptureFixture[str], objective: str
) -> None:
    arguments = [*SMOL, "--link", "wifi", "--max-tbt", "0.2", "--max-quality-drop", "6"]
    assert main([*arguments, "--objective", objective]) == 0
    said = capsys.readouterr().out
    for part in ("What it promises", "binding:", "What would help"):
        assert part in said


def test_the_pareto_front_holds_the_plan_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *SMOL, "--link", "wifi", "--pareto", "--slack", "0", "--level", "q3")
    axes = ("tbt", "cloud-cost", "edge-memory", "quality")
    points = [tuple(row[axis] for axis in axes) for row in found["pareto"]]
    assert len(set(points)) == len(points) > 10
    assert min(point[0] for point in points) == pytest.approx(found["predicted"]["tbt_s"])


def test_what_nothing_fits_says_how_far_each_limit_must_give_way(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*SMOL, "--link", "wifi", "--edge-memory", "100MiB", "--max-tokens", "1024"]
    status, line = refused(capsys, *arguments)
    assert status == 1
    assert "edge memory" in line
    assert "instead of 100 MiB" in line
    assert main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    relaxations = {item["limit"]: item for item in json.loads(captured.out)["relaxations"]}
    needed = relaxations["edge memory"]["needed"]
    arguments[arguments.index("100MiB")] = str(int(needed) + 1)
    assert planned(capsys, *arguments)["predicted"]["edge_memory_bytes"] == pytest.approx(needed)


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (("--edge-memory", "-5MiB"), 2, "not a size"),
        (("--max-tokens", "999999"), 1, "context of 8192"),
        (("--edge", "abacus"), 1, "no device profile 'abacus'"),
        (("--link", "pigeon"), 1, "no link profile 'pigeon'"),
        (("--model", "gpt-9"), 1, "no model 'gpt-9'"),
        (("--objective", "fame"), 2, "choose one of tbt"),
        (("--max-tbt", "-1"), 2, "must be positive"),
        (("--max-ttft", "nan"), 2, "must be positive"),
        (("--max-tbt", "inf"), 2, "write 'none' instead"),
        (("--max-tbt", "150"), 2, "for 150 ms write 0.15"),
        (("--edge-memory", "4"), 2, "no unit: write 4G, or 4MiB"),
        (("--prompt-tokens", "0"), 2, "must be positive"),
        (("--answer-tokens", "0"), 2, "equal to 1"),
        (("--prompt-tokens", "9000"), 1, "exceed"),
        (("--epsilon", "1.5"), 2, "between 0 and 1"),
        (("--split", "31"), 1, "the model has 30 layers"),
        (("--split", "a-b"), 2, "give 10, or 8-12"),
        (("--level", "q99"), 1, "choose among"),
        (("--sessions", "0"), 2, "must be positive"),
        (("--slack", "300"), 2, "equal to 99"),
        (("--sensitivity", "nowhere.json"), 1, "nowhere.json: No such file or directory"),
        (("--certificate", "nowhere.json"), 1, "nowhere.json"),
    ],
)
def test_nonsense_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], change: tuple[str, str], status: int, reason: str
) -> None:
    got, line = refused(capsys, *SMOL, "--link", "wifi", *change)
    assert (got, reason in line) == (status, True), line


def test_a_link_without_bandwidth_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quantiles = "{p05: 0, p50: 1000, p95: 2000, source: a test, measured: false}"
    path = tmp_path / "dead.yaml"
    path.write_text(
        f"name: dead\ndescription: dead at its worst\nup_bytes_per_s: {quantiles}\n"
        f"down_bytes_per_s: {quantiles}\nrtt_s: {quantiles}\n"
    )
    status, line = refused(capsys, *SMOL, "--link", str(path), "--epsilon", "0.01")
    assert status == 1
    assert "rate is 0" in line


def test_drafting_is_planned_from_the_figures_of_the_bundles_head(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "draft").mkdir()
    facts = {"split": 10, "top1": 0.6, "guess_s": 0.001, "num_bytes": 5_000_000}
    (tmp_path / "draft" / "head.json").write_text(json.dumps(facts))
    arguments = [*SMOL, "--link", "4g", "--edge-memory", "200MiB"]
    plain = planned(capsys, *arguments)
    drafted = planned(capsys, *arguments, "--draft", str(tmp_path))
    assert plain["drafting"] == "off"
    assert (drafted["drafting"], drafted["split"]) == ("head", 10)
    assert drafted["predicted"]["tbt_s"] < 0.65 * plain["predicted"]["tbt_s"]
    assert drafted["predicted"]["tokens_per_round"] > 1.5
    assert drafted["predicted"]["edge_memory"]["draft_bytes"] == 5_000_000
    looked_up = planned(capsys, *arguments, "--ngram-acceptance", "0.5")
    assert looked_up["drafting"] == "ngram"
    status, line = refused(capsys, *arguments, "--draft", str(tmp_path / "none"))
    assert status == 1
    assert "has no draft head" in line


def test_the_servers_head_and_what_a_run_reported_are_planned_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "cloud" / "draft-head"
    folder.mkdir(parents=True)
    (folder / "head.json").write_text(json.dumps({"by_depth": [0.5, 0.4, 0.3]}))
    arguments = [*SMOL, "--link", "4g", "--split", "10"]
    plain = planned(capsys, *arguments)
    cloud = planned(capsys, *arguments, "--draft", str(tmp_path))
    auto = planned(capsys, *arguments, "--tokens-per-round-trip", "2.5")
    assert [plan["drafting"] for plan in (plain, cloud, auto)] == ["off", "cloud", "auto"]
    assert cloud["predicted"]["tokens_per_round"] == pytest.approx(
        1 + 0.5 * (1 + 0.4 * 1.4285), 1e-2
    )
    assert auto["predicted"]["tokens_per_round"] == pytest.approx(2.5)
    assert plain["predicted"]["tbt_s"] > 2 * auto["predicted"]["tbt_s"]
    for plan in (plain, cloud, auto):
        predicted = plan["predicted"]
        round_s = predicted["tbt_s"] * predicted["tokens_per_round"]
        assert sum(predicted["step"].values()) == pytest.approx(round_s)


@pytest.mark.parametrize(
    "facts", ['{"by_depth": []}', '{"by_depth": [1.5]}', '{"by_depth": 3}', "[]", "{}", "{"]
)
def test_facts_of_a_head_that_make_no_sense_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, facts: str
) -> None:
    folder = tmp_path / "cloud" / "draft-head"
    folder.mkdir(parents=True)
    (folder / "head.json").write_text(facts)
    status, line = refused(capsys, *SMOL, "--link", "4g", "--draft", str(tmp_path))
    assert status == 1
    assert "head" in line or "acceptance" in line


@pytest.mark.parametrize(
    ("link", "num_bytes", "chosen"),
    [
        ("4g", 5_000_000, "head"),
        ("lan", 5_000_000, "off"),  # a round trip that is shorter than the rows of the guesses
        ("4g", 300_000_000, "off"),  # more than the device has
    ],
)
def test_a_head_is_planned_only_where_it_pays_and_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, link: str, num_bytes: int, chosen: str
) -> None:
    (tmp_path / "draft").mkdir()
    facts = {"split": 10, "top1": 0.2, "guess_s": 0.001, "num_bytes": num_bytes}
    (tmp_path / "draft" / "head.json").write_text(json.dumps(facts))
    arguments = [*SMOL, "--link", link, "--edge-memory", "200MiB", "--split", "10"]
    assert planned(capsys, *arguments, "--draft", str(tmp_path))["drafting"] == chosen


def test_build_follows_the_plan_to_the_letter(
    capsys: pytest.CaptureFixture[str], tiny: Any, tmp_path: Path
) -> None:
    bench: ModelBench = tiny("llama")
    folder, plan_file, out = tmp_path / "model", tmp_path / "plan.yaml", tmp_path / "bundle"
    folder = bench.source.folder  # type: ignore[attr-defined]
    arguments = ["plan", "--model", str(folder), *PI, "--link", "wifi", "--split", "2"]
    arguments += ["--prompt-tokens", "16", "--answer-tokens", "8", "--max-tokens", "96"]
    planned(capsys, *arguments, "--level", "lossless", "--out", str(plan_file))
    build = ["build", str(plan_file), "--model", str(folder), "--out", str(out)]
    assert main([*build, "--no-calibrate"]) == 0
    assert open_bundle(out, role="edge").plan == load_plan(plan_file)


def test_a_plan_made_without_weights_takes_any_of_its_shape(tiny: Any) -> None:
    bench: ModelBench = tiny("llama")
    plan = bench.plan(2)
    nameless = replace(plan, model=replace(plan.model, id="tiny", sha256=""))
    assert for_model(nameless, bench.source) == plan
    wider = replace(plan.model.geometry, vocab_size=999)
    with pytest.raises(BuildError, match="of tiny's shape"):
        for_model(replace(nameless, model=replace(nameless.model, geometry=wider)), bench.source)
    with pytest.raises(BuildError, match="the plan is for model"):
        for_model(replace(plan, model=replace(plan.model, sha256="1" * 64)), bench.source)


def test_the_pictures_are_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    arguments = [*SMOL, "--link", "wifi", "--edge-memory", "200MiB", "--split", "4-12"]
    assert main([*arguments, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 30_000


def test_measured_layers_lead_to_fronts_of_mixed_precision(
    capsys: pytest.CaptureFixture[str], tiny: Any, tmp_path: Path
) -> None:
    bench: ModelBench = tiny("llama")
    folder = str(bench.source.folder)  # type: ignore[attr-defined]
    text, losses, plan_file = tmp_path / "text", tmp_path / "layers.json", tmp_path / "plan.yaml"
    text.write_text("A few words to read, again and again. " * 8)
    measure = ["sensitivity", "--model", folder, "--split", "3", "--text", str(text)]
    assert main([*measure, "--out", str(losses), "--tokens", "64", "--window", "32"]) == 0
    assert capsys.readouterr().out.strip() == str(losses)
    # Losses as if the second layer alone minded 4 bits.
    values = json.loads(losses.read_text())
    values["losses"] = [{"4": 0.2 if layer == 1 else 1e-4, "8": 1e-5} for layer in range(3)]
    losses.write_text(json.dumps(values))
    arguments = ["plan", "--model", folder, *PI, "--link", "wifi", "--split", "3"]
    arguments += ["--prompt-tokens", "16", "--answer-tokens", "8", "--max-tokens", "96"]
    arguments += ["--sensitivity", str(losses), "--max-quality-drop", "3", "--level", "lossless"]
    arguments += ["--slack", "0", *FASTEST]
    found = planned(capsys, *arguments, "--out", str(plan_file))
    assert found["front_layer_bits"] == [4, 8, 4]
    assert found["front_bits"] == 4
    status, line = refused(
        capsys, *SMOL, "--link", "wifi", "--sensitivity", str(tmp_path / "nowhere")
    )
    assert status == 1
    assert "nowhere" in line


def test_a_profile_of_the_other_role_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", "smollm2-135m", "--link", "wifi", "--json"]
    machines = ["--edge", "local-epyc-2core-cloud", "--cloud", "local-epyc-2core-cloud"]
    assert main([*arguments, *machines]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "profile of cloud" in captured.err


def test_a_plan_is_simulated_from_any_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, other = tmp_path / "work", tmp_path / "elsewhere"
    work.mkdir()
    other.mkdir()
    edge = load_device("raspberry-pi-5-8gb")
    (work / "mine.yaml").write_text(device_to_yaml(edge), encoding="utf-8")
    monkeypatch.chdir(work)
    arguments = ("--edge", "mine.yaml", "--cloud", "a100-80gb", "--link", "4g")
    planned(
        capsys, "plan", "--model", "smollm2-135m", *arguments, "--out", "plans/plan.yaml"
    )  # fmt: skip
    plan = load_plan(work / "plans" / "plan.yaml")
    assert plan.profiles is not None
    assert plan.profiles.edge == "../mine.yaml"
    monkeypatch.chdir(other)
    file = str(work / "plans" / "plan.yaml")
    assert main(["simulate", file, "--duration", "5", "--json"]) == 0


def test_quality_has_a_default_limit_that_shows_and_can_be_lifted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (*SMOL_WITH_LIMIT, "--link", "4g", "--edge-memory", "400MiB")
    kept = planned(capsys, *arguments)
    assert kept["predicted"]["quality_drop_pct"] <= 3.0
    assert kept["limits"]["max_quality_drop_pct"] == 3.0
    lifted = planned(capsys, *arguments, "--max-quality-drop", "none")
    assert lifted["limits"]["max_quality_drop_pct"] is None
    status, line = refused(capsys, *arguments, "--max-quality-drop", "some")
    assert status == 2
    assert "--max-quality-drop" in line


def test_an_assumed_loss_of_quality_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMOL, "--link", "4g", "--split", "10", "--level", "q4"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "assumed: measure" in text
    assert "certify" in text


@pytest.mark.parametrize(
    ("engine", "provider", "said"),
    [
        ("onnxruntime-cuda", "cuda", "are assumed for cuda: it takes cuda by itself"),
        ("torch-cuda", "cpu", "figures of torch-cuda, and an edge runs ONNX Runtime"),
    ],
)
def test_a_profile_of_other_kernels_than_the_cpus_is_named_and_kept_in_the_plan(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: Any, provider: str, said: str
) -> None:
    profile = load_device("jetson-orin-nano-8gb")
    other = replace(profile, platform=replace(profile.platform, engine=engine))
    file = tmp_path / "gpu.yaml"
    file.write_text(device_to_yaml(other))
    arguments = ("--edge", str(file), "--cloud", "a100-80gb", "--link", "4g")
    assert main(["plan", "--model", "smollm2-135m", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert said in captured.err
    assert bool(captured.err.strip()) == bool(said)
    assert json.loads(captured.out)["profiles"]["edge_provider"] == provider


def test_a_plan_for_a_gpu_server_counts_16_bits_a_weight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A GPU server widens weights of 8 bits, so they save nothing: 7 B weights are 13 GB."""
    found = planned(capsys, "plan", "--model", "llama-2-7b", *PI, "--link", "4g", "--split", "0")
    assert found["back_bits"] == 16
    assert 13e9 < found["predicted"]["cloud_memory_bytes"] < 16e9


def test_layers_are_read_from_storage_only_where_nothing_else_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    limits = ("--edge-memory", "200MiB", "--split", "30", "--max-tokens", "256")
    arguments = [*SMOL, "--link", "4g", "--answer-tokens", "64", *limits]
    found = planned(capsys, *arguments)
    assert 0 < found["streamed_layers"] < 29
    assert found["predicted"]["edge_memory_bytes"] <= 200 * 2**20
    assert main(arguments) == 0
    assert "read from storage" in capsys.readouterr().out
    assert main([*arguments, "--stream-weights", "off"]) != 0
    assert "edge memory" in capsys.readouterr().err
    roomy = [*SMOL, "--link", "4g", "--split", "10"]
    assert planned(capsys, *roomy, "--stream-weights", "on")["streamed_layers"] == 0
    for wrong in ("perhaps", "on"):
        _, said = refused(capsys, *roomy, "--stream-weights", wrong, "--segments", "2")
        assert "--stream-weights" in said
