"""Plan, build, serve and run over emulated links; compare with the plan's predictions. JSON last.

    python benchmarks/planning/plan_against_measured.py [--memories 64,128,256] [--repeats 5]

For two rates, two round trips and three memory limits (MiB above what the edge's process takes
before it loads the front) SmolLM2-135M is planned for the least time between tokens. Each
distinct configuration is built (edge bundles by split, one cloud bundle that serves all of them),
served in a process of its own, and run by another through the link emulator: `--repeats` prompts
of 128 tokens after one that is thrown away, then one sequence as long as the plan allows, for the
peak of memory.
Neighbours (split, precisions and level one step away) that keep the limits run as well.

Profile, bundles and results stay in `--folder`; a second call goes on where the first stopped, so
that measuring can be cut into pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.planning.plan_cases import MIB, Case, report, run_key
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.bundle import PLAN_NAME, Role, write_manifest
from optimizer.artifacts.plan import ModelRef, Plan
from optimizer.artifacts.prediction import Limits, Predicted, ProfilesUsed
from optimizer.cost.memory import edge_runtime_bytes
from optimizer.search.planner import Planner
from optimizer.search.problem import Cell
from optimizer.search.request import make_problem
from optimizer.search.to_plan import plan_of
from splitpoint.server_process import serving

RATES_MBPS = ((4.0, 16.0), (20.0, 50.0))  # up, down
RTTS_S = (0.010, 0.060)
PROMPT, ANSWER, MAX_TOKENS = 128, 32, 768
BACK_BITS = 8
LEVELS: tuple[str, ...] | None = ("lossless",)  # None: all, and every split is calibrated
MAX_QUALITY_DROP_PCT = 12.0
CALIBRATION_TOKENS = 3072
TEXT = Path("../shared/data/wikitext2/wiki.valid.raw")

EDGE: tuple[Role, ...] = ("edge",)
CLOUD: tuple[Role, ...] = ("cloud",)


def _predicted(plan: Plan) -> Predicted:
    """What a searched plan promises; plans made by flags promise nothing."""
    if plan.predicted is None:
        raise ValueError("this plan was not searched: it has no predictions")
    return plan.predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--folder", type=Path, default=Path("build/plan_against_measured"))
    parser.add_argument("--edge", type=Path, help="profile of this machine's edge side")
    parser.add_argument("--cloud", type=Path, help="profile of its server side")
    parser.add_argument("--memories", default="64,128,256")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--only-build", action="store_true")
    parser.add_argument("--budget-s", type=float, default=300.0, help="start no run after this")
    parser.add_argument("--real-time", action="store_true", help="SCHED_FIFO: needs root")
    parser.add_argument("--only-report", action="store_true")
    parser.add_argument("--measure", nargs=3, metavar=("BUNDLE", "ADDRESS", "LEVEL"))
    arguments = parser.parse_args()
    if arguments.measure:
        bundle, address, level = arguments.measure
        found = measure(bundle, address, level, arguments.repeats, arguments.text)
        print(json.dumps(found))
        return
    begun = time.monotonic()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    profiles = {}
    for role in ("edge", "cloud"):
        profiles[role] = getattr(arguments, role) or folder / f"this-machine-{role}.yaml"
        if not profiles[role].is_file():
            command = ["-m", "splitpoint", "profile", "device", "--role", role]
            command += ["--out", str(profiles[role])]
            subprocess.run([sys.executable, *command], check=True)
    memories = [int(value) for value in arguments.memories.split(",")]
    studies = [
        study(case, profiles, arguments.model)
        for case in (
            Case(up_mbps=up, down_mbps=down, rtt_s=rtt, memory_mib=memory)
            for memory in memories
            for up, down in RATES_MBPS
            for rtt in RTTS_S
        )
    ]
    build_bundles([plan for item in studies for plan in item["plans"]], arguments, folder)
    results_file = folder / "results.json"
    results = json.loads(results_file.read_text()) if results_file.is_file() else {}
    if not (arguments.only_build or arguments.only_report):
        with ExitStack() as stack:
            if arguments.real_time:  # children inherit it; the relay in this process goes first
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
            address = stack.enter_context(serving(folder / "cloud"))
            if arguments.real_time:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(12))
            for case, plan in in_order(studies):
                if time.monotonic() - begun > arguments.budget_s:
                    say("the budget is spent: call again for the rest")
                    break
                key = run_key(case, plan)
                if key not in results:
                    results[key] = run(case, plan, address, arguments, folder)
                    results_file.write_text(json.dumps(results, indent=1))
    report(studies, results)


def in_order(studies: list[dict[str, Any]]) -> list[tuple[Case, Plan]]:
    """All plans first, then their neighbours, short round trips before long ones."""
    runs = [
        (index > 0, item["case"].rtt_s, item["case"], plan)
        for item in studies
        for index, plan in enumerate(item["plans"])
    ]
    runs.sort(key=lambda entry: entry[:2])
    return [(case, plan) for *_, case, plan in runs]


def study(case: Case, profiles: dict[str, Path], model: Path) -> dict[str, Any]:
    """The plan of a case, and its neighbours that keep the limits, the plan first."""
    edge, cloud = load_device(profiles["edge"]), load_device(profiles["cloud"])
    base = edge_runtime_bytes(edge, reference(model).geometry)
    limits = Limits(
        edge_memory_bytes=base + case.memory_mib * MIB,
        max_quality_drop_pct=MAX_QUALITY_DROP_PCT,
        prompt_tokens=PROMPT,
    )
    problem = make_problem(
        reference(model).geometry,
        edge,
        cloud,
        limits=limits,
        max_tokens=MAX_TOKENS,
        answer_tokens=ANSWER,
        back_bits=(BACK_BITS,),
        levels=LEVELS,
        back_from=0,
        slack=0.0,
    )
    planner = Planner(problem)
    found = planner.solve(case.link)
    if found is None:
        raise SystemExit(f"{case}: no plan")
    mask = found.grid.feasible()
    cells = [found.cell, *neighbours(found.cell, mask.shape)]
    used = ProfilesUsed(edge=edge.name, cloud=cloud.name, link="emulated")
    plans = [
        plan_of(found.grid, cell, model=reference(model), profiles=used)
        for cell in cells
        if mask[cell]
    ]
    return {"case": case, "plans": plans, "limit": limits.edge_memory_bytes}


def neighbours(cell: Cell, shape: tuple[int, ...]) -> list[Cell]:
    """One step away in split, front bits, KV bits or level."""
    out = []
    for axis in ("split", "front", "kv", "level"):
        for step in (-1, 1):
            at = getattr(cell, axis) + step
            if 0 <= at < shape[Cell._fields.index(axis)]:
                out.append(cell._replace(**{axis: at}))
    whole = shape[0] - 1
    for index, other in enumerate(out):
        if other.split == whole:
            out[index] = other._replace(back=0, level=0, draft=0)
    return [other for other in dict.fromkeys(out) if other != cell]


def reference(model: Path) -> ModelRef:
    """The model's identity, read once."""
    from optimizer.export.sources.model_source import open_source

    if "model" not in _KEPT:
        source = open_source(model)
        _KEPT["model"] = ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry)
    return _KEPT["model"]


_KEPT: dict[str, Any] = {}


def bundle_of(plan: Plan, folder: Path) -> Path:
    """Where the edge bundle of a configuration lies."""
    part = plan.partition
    return folder / f"edge-s{part.split}-b{part.front_bits}-k{plan.kv_bits}-c{plan.prefill_chunk}"


def build_bundles(plans: list[Plan], arguments: argparse.Namespace, folder: Path) -> None:
    """Every edge bundle that is missing, and the cloud's, with the tables of all splits."""
    from optimizer.export.bundle_builder import build_bundle
    from optimizer.export.calibration.calibrate import calibrate
    from optimizer.export.layers.layered_model import LayeredModel
    from optimizer.export.sources.model_source import open_source

    cloud = folder / "cloud"
    missing = {bundle_of(plan, folder): plan for plan in plans}
    missing = {path: plan for path, plan in missing.items() if not path.is_dir()}
    if not missing and cloud.is_dir():
        return
    source = open_source(arguments.model)
    if not cloud.is_dir():
        first = next(plan for plan in plans if not plan.edge_is_whole)
        build_bundle(source, replace(first, back_start=0), cloud, progress=say, sides=CLOUD)
        (cloud / "codec").mkdir(exist_ok=True)
    model, ids = None, None
    for path, plan in missing.items():
        say(f"building {path}")
        twin = next(folder.glob(f"{path.name.rpartition('-')[0]}-c*"), None)
        if twin is not None:  # the chunk is in the plan alone
            shutil.copytree(twin, path)
            (path / PLAN_NAME).write_text(plan.to_yaml())
            write_manifest(path)
            continue
        build_bundle(source, plan, path, progress=lambda stage: None, sides=EDGE)
        if plan.edge_is_whole:
            continue
        if LEVELS == ("lossless",):
            continue
        tables = cloud / "codec" / f"split-{plan.partition.split}.tables"
        if not tables.is_file():
            model = model or LayeredModel(source, folder=folder)
            if ids is None:
                text = arguments.text.read_text(encoding="utf-8")[: 8 * CALIBRATION_TOKENS]
                ids = list(source.load_tokenizer()(text)["input_ids"])
            calibrate(
                model, split=plan.partition.split, out=tables, token_ids=ids,
                num_tokens=CALIBRATION_TOKENS,
            )  # fmt: skip
        (path / "codec").mkdir(exist_ok=True)
        shutil.copy(tables, path / "codec" / tables.name)
        write_manifest(path)
    write_manifest(cloud)


def run(
    case: Case, plan: Plan, address: str, arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Measure one configuration over one link, the edge in a process of its own."""
    host, _, port = address.rpartition(":")
    link = case.link
    shape = LinkShape.fixed(
        rtt_s=link.rtt_s,
        up_bytes_per_s=link.up_bytes_per_s,
        down_bytes_per_s=link.down_bytes_per_s,
    )
    with ExitStack() as stack:
        target = address
        if not plan.edge_is_whole:
            relay = stack.enter_context(EmulatedLink(target=(host, int(port)), shape=shape))
            target = f"{relay.address[0]}:{relay.address[1]}"
        command = [sys.executable, __file__, "--measure", str(bundle_of(plan, folder)), target]
        command += [plan.level, "--repeats", str(arguments.repeats), "--text", str(arguments.text)]
        if arguments.real_time:
            command = ["chrt", "-f", "10", *command]
        started = time.monotonic()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(
        f"{run_key(case, plan)}: TBT {1e3 * result['tbt_s']:.2f} ms "
        f"({1e3 * _predicted(plan).tbt_s:.2f}), TTFT {1e3 * result['ttft_s']:.0f} ms "
        f"({1e3 * _predicted(plan).ttft_s:.0f}); {time.monotonic() - started:.0f} s"
    )
    return result


def measure(bundle: str, address: str, level: str, repeats: int, text: Path) -> dict[str, Any]:
    """In the edge's process: medians over `repeats` prompts, then one longest sequence."""
    from edge.client import EdgeClient
    from edge.errors import MemoryLimitError
    from edge.generation.completion import CompletionRequest
    from edge.generation.report import breakdown
    from hwprofiles.peak_memory import peak_memory_bytes

    refused = ""
    try:
        client = EdgeClient(bundle, address)  # keeps the plan's limit, or refuses
    except MemoryLimitError as error:
        refused = str(error)
        client = EdgeClient(bundle, address, memory_limit_bytes=sys.maxsize)
    with client:
        ids = client.tokenizer.encode(text.read_text(encoding="utf-8")[:60_000])
        request = CompletionRequest(
            max_new_tokens=ANSWER, level=level, draft="off", ignore_eos=True
        )
        ttfts, tbts, parts = [], [], []
        for index in range(repeats + 1):
            completion = client.start_ids(ids[index * PROMPT : (index + 1) * PROMPT], request)
            for _ in completion:
                pass
            done = completion.completion
            if index:
                ttfts.append(done.ttft_s)
                tbts.append(done.tbt_quantile_s(0.5))
                parts.append(breakdown(done.steps, "decode"))
        longest = client.start_ids(ids[: MAX_TOKENS - ANSWER], request)
        for _ in longest:
            pass
    names = parts[0]
    return {
        "ttft_s": statistics.median(ttfts),
        "tbt_s": statistics.median(tbts),
        "ttft_range_s": [min(ttfts), max(ttfts)],
        "tbt_range_s": [min(tbts), max(tbts)],
        "peak_memory_bytes": peak_memory_bytes(),
        "refused": refused,
        "parts_s": {name: statistics.median(part[name] for part in parts) for name in names},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
