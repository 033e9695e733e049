"""Predicted beside measured for a grid of deployments on this machine: one JSON and one page.

    python -m benchmarks.planning.grid --folder build/grid --repeats 3 --write PAGE

24 deployments (links, splits from 0 to all layers, memory limits, prompts in the cloud, drafts),
fronts alone at short and long histories, a server process with 1, 8 and 32 sessions, and fronts
and server steps of 0.5, 1.5 and 3 B with seeded weights (`grid_cells.py`). Every cell has p10, p50
and p90 of what was predicted beside what was measured.

- **Fair on one machine:** the device's side runs on one core and the server's on another, and both
  profiles are measured pinned in the same way, at the beginning of every repeat. With one core
  there is no such line, and the page says so.
- **Quiet:** before each cell the run waits until others use less than 0.3 cores, and, for a minute
  at most, until both cores are as fast as they were for the profiles: other machines of one host
  slow them down. `--busy` does not wait. A cell beside which others used more, or before or after
  which a core's pace was off by more than 10 %, is marked as busy either way. `--real-time` runs
  both sides at real-time priority (root), which makes a busy machine bearable, but not its memory
  quiet.
  There the threads that compute give way to those that send, as ordinary threads do by themselves.
- **Resumable:** results are in FOLDER/grid.json, written after every cell. Cells that are there are
  skipped. `--again` measures those once more that were busy. `--report` measures nothing, and
  predicts with the models as they are now.
- **Logged:** programs append what they measure to FOLDER/measured-REPEAT.jsonl. With it profiles
  that are wrong by 1.5 are refined (`wrong_profile.py`).

Bundles are built in FOLDER once (minutes). Needs torch; 3 GB of disk and memory for the 3 B front.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.planning.grid_cells import (
    CELLS,
    FRONT_TOKENS,
    LARGE_CACHED,
    LARGE_SESSIONS,
    POSITIONS,
    PROMPT_ROWS,
    SERVER_SPLIT,
    FrontCell,
    GridCell,
    LargeCell,
    LargeServerCell,
    PlanCell,
    ServerCell,
    fixed_link,
    long_front,
)
from benchmarks.planning.grid_page import page, rows_of, say, write_page
from benchmarks.planning.grid_predict import TwoMachines, plan_of_cell
from benchmarks.planning.quiet_machine import (
    QUIET_CORES,
    OthersLoad,
    Pace,
    child_ids,
    let_busiest_give_way,
    pinned,
    same_pace,
    two_cpus,
    wait_until_quiet,
)
from benchmarks.planning.wrong_profile import log_of, refined_rows
from hwprofiles.profiler.system_facts import processor_name
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import load_plan
from splitpoint.server_process import crossing, serving

SIDE_PRIORITY, LINK_PRIORITY = 10, 12  # with --real-time: the link does not wait for the device
STEPS, WARM_STEPS = 40, 10  # of every session of a server cell, and before all cells
LARGE_POSITIONS, LARGE_TOKENS, LARGE_ROWS = (16, 192), 256, 64
SPARE_BYTES = 4 << 20  # what a memory limit is above the prediction: a process differs by as much


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--folder", type=Path, default=Path("build/grid"))
    parser.add_argument("--repeats", type=int, default=1, help="passes over the grid")
    parser.add_argument("--answers", type=int, default=3, help="answers of a cell in one pass")
    parser.add_argument(
        "--only", default="", help="cells whose name has one of these: 'plan: 4g; large'"
    )
    parser.add_argument("--busy", action="store_true", help="do not wait for a quiet machine")
    parser.add_argument("--real-time", action="store_true", help="SCHED_FIFO: needs root")
    parser.add_argument("--again", action="store_true", help="measure busy cells once more")
    parser.add_argument("--quick", action="store_true", help="quick profiles")
    parser.add_argument("--build", action="store_true", help="build bundles, measure nothing")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page of results")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [part.strip() for part in arguments.only.split(";")]
    cells = [cell for cell in CELLS if any(part in cell.key for part in wanted)]
    if not arguments.report:
        build_missing(cells, arguments.model, folder)
    run = GridRun(arguments, cells)
    if not (arguments.report or arguments.build):
        for repeat in range(arguments.repeats):
            run.measure(repeat)
    rows = rows_of(run.results, run.machines, folder)
    refined = refined_rows(
        run.results, run.machines, folder, lambda found, of: rows_of(found, of, folder)
    )
    text = page(run.results, rows, refined)
    print(text)
    if arguments.write is not None:
        write_page(arguments.write, text)
    print(json.dumps({"benchmark": "grid", "rows": rows}))


def build_missing(cells: Sequence[GridCell], model: Path, folder: Path) -> None:
    """Bundles and seeded fronts that are not there yet, each kind in a process of its own."""
    names = {
        (cell.bundle, cell.split, cell.front_bits, cell.kv_bits)
        for cell in cells
        if isinstance(cell, PlanCell | FrontCell)
    }
    names = {name for name in names if not (folder / name[0]).is_dir()}
    if names or not (folder / "cloud").is_dir():
        work("build", model, folder, json.dumps(sorted(names)))
    for cell in cells:
        if isinstance(cell, LargeCell) and not (folder / cell.bundle / "plan.yaml").is_file():
            say(f"writing {cell.bundle}")
            sizes = json.dumps(cell.sizes)
            work("seeded", folder / cell.bundle, cell.bits, LARGE_TOKENS, sizes)


class GridRun:
    """The results so far, and how to get the rest."""

    def __init__(self, arguments: argparse.Namespace, cells: Sequence[GridCell]) -> None:
        self._arguments = arguments
        self._cells = cells
        self._folder: Path = arguments.folder
        self._file = self._folder / "grid.json"
        self._edge_cpu, self._cloud_cpu = two_cpus()
        self._own: list[int] = []
        self._priority = SIDE_PRIORITY if arguments.real_time else 0
        self._pace: Pace | None = None  # of the time of the profiles
        self.results: dict[str, Any] = {"machine": {}, "repeats": []}
        if self._file.is_file():
            self.results = json.loads(self._file.read_text(encoding="utf-8"))

    def machines(self, repeat: int) -> TwoMachines:
        """The profiles of one repeat."""
        edge, cloud = (load_device(str(self._profile(repeat, role))) for role in ("edge", "cloud"))
        return TwoMachines(edge=edge, cloud=cloud, model=self._arguments.model)

    def measure(self, repeat: int) -> None:
        """All cells of one repeat that are missing."""
        repeats = self.results["repeats"]
        while len(repeats) <= repeat:
            repeats.append({"profiles": {}, "cells": {}})
        done = repeats[repeat]["cells"]
        left = [
            cell
            for cell in self._cells
            if cell.key not in done or (self._arguments.again and done[cell.key]["busy"])
        ]
        if not left:
            return
        self.results["machine"] = {
            "processor": processor_name(),
            "cpus": os.cpu_count(),
            "pinned": self._edge_cpu is not None,
            "real_time": bool(self._priority),
            "quick": self._arguments.quick,
            "python": platform.python_version(),
            "date": date.today().isoformat(),
        }
        self._measure_profiles(repeat)
        machines = self.machines(repeat)
        log = log_of(self._folder, repeat).resolve()
        with self._server(left, log) as address:
            for number, cell in enumerate(left, start=1):
                found = self._noted(lambda cell=cell: self._cell(cell, machines, address, log))
                done[cell.key] = found
                self._save()
                busy = f", busy: {found['others_cores']:.1f} cores" if found["busy"] else ""
                busy += f", pace {found['slowdowns']}" if found["busy"] else ""
                say(f"{number} of {len(left)}: {cell.key}: {found['took_s']:.0f} s{busy}")

    def _measure_profiles(self, repeat: int) -> None:
        cpus = {"edge": self._edge_cpu, "cloud": self._cloud_cpu}
        for role, cpu in cpus.items():
            out = self._profile(repeat, role)
            if out.is_file():
                continue
            command = ["-m", "splitpoint", "profile", "device", "--role", role, "--out", str(out)]
            command += ["--quick"] if self._arguments.quick else []
            with pinned(cpu, priority=self._priority):
                found = self._noted(lambda command=command: _run(command))
            say(f"profile of the {role}: {found['took_s']:.0f} s")
            self.results["repeats"][repeat]["profiles"][role] = found
            self._save()

    def _noted(self, measure: Any) -> dict[str, Any]:
        """What `measure` gives, with its seconds and what others used meanwhile."""
        if self._pace is None:
            self._pace = Pace((self._edge_cpu, self._cloud_cpu), priority=self._priority)
        if not self._arguments.busy:
            wait_until_quiet(self._own, tell=say)
            self._pace.wait(tell=say)
        paces = [self._pace.slowdown()]
        load, began_s = OthersLoad(self._own), time.monotonic()
        found = measure() or {}
        cores = load.cores()
        found["took_s"] = time.monotonic() - began_s
        paces.append(self._pace.slowdown())
        return {
            **found,
            "others_cores": round(cores, 2),
            "slowdowns": [round(pace, 3) for pace in paces],
            "busy": cores > QUIET_CORES or not all(map(same_pace, paces)),
        }

    @contextmanager
    def _server(self, cells: Sequence[GridCell], log: Path) -> Iterator[str]:
        """One server for all cells, on its core; "" where none is needed."""
        if all(isinstance(cell, FrontCell | LargeCell | LargeServerCell) for cell in cells):
            yield ""
            return
        options = ["--measure", str(log)]
        with ExitStack() as stack:
            with pinned(self._cloud_cpu, priority=self._priority):
                address = stack.enter_context(serving(self._folder / "cloud", options))
            self._own = child_ids()
            plan = self._folder / "cloud" / "plan.yaml"
            with pinned(self._edge_cpu, priority=self._priority):  # shows the thread of the model
                work("clients", address, plan, 1, WARM_STEPS, SERVER_SPLIT)
            for process in self._own:
                let_busiest_give_way(process)
            yield address

    def _cell(
        self, cell: GridCell, machines: TwoMachines, address: str, log: Path
    ) -> dict[str, Any]:
        folder = self._folder
        if isinstance(cell, PlanCell):
            return self._answers(cell, machines, address, log)
        if isinstance(cell, LargeServerCell):
            sizes, sessions = json.dumps(cell.model.sizes), json.dumps(LARGE_SESSIONS)
            with pinned(self._cloud_cpu, priority=self._priority):
                return work("back", sizes, cell.bits, sessions, LARGE_CACHED)
        if isinstance(cell, ServerCell):  # at real-time priority its threads would come in parts
            plan = folder / "cloud" / "plan.yaml"
            with pinned(self._edge_cpu):
                return work("clients", address, plan, cell.sessions, STEPS, SERVER_SPLIT)
        with pinned(self._edge_cpu, priority=self._priority):
            if isinstance(cell, FrontCell):
                longer = self._longer(folder / cell.bundle)
                found = work("front", longer, json.dumps(POSITIONS), PROMPT_ROWS)
                return {**found, "prompt_rows": PROMPT_ROWS}
            front = folder / cell.bundle
            found = work("front", front, json.dumps(LARGE_POSITIONS), LARGE_ROWS)
            return {**found, "prompt_rows": LARGE_ROWS}

    def _answers(
        self, cell: PlanCell, machines: TwoMachines, address: str, log: Path
    ) -> dict[str, Any]:
        """A deployment from the device to the server, over its link."""
        limit = 0
        if cell.limited:
            predicted = plan_of_cell(cell, machines, limit=float(1 << 40)).predicted
            limit = SPARE_BYTES + int(predicted.edge_memory_bytes if predicted else 0)
        bundle = self._folder / cell.bundle
        with ExitStack() as stack:
            at = ""
            if cell.link != "none":
                with pinned(self._edge_cpu, priority=self._priority and LINK_PRIORITY):
                    at = stack.enter_context(crossing(fixed_link(cell.link), address))
            with pinned(self._edge_cpu, priority=self._priority):
                answers = self._arguments.answers
                options = (answers, cell.draft, limit, cell.chunk, cell.prefill)
                found = work("answers", bundle, at, *options, log)
        return {**found, "limit_bytes": limit}

    def _longer(self, bundle: Path) -> Path:
        """The bundle's front with a plan of `FRONT_TOKENS` tokens: the weights are the same."""
        front = long_front(bundle)
        front.mkdir(exist_ok=True)
        for file in (bundle / "edge").iterdir():
            if not (front / file.name).exists():
                (front / file.name).hardlink_to(file)
        plan = replace(load_plan(bundle / "plan.yaml"), max_tokens=FRONT_TOKENS, prefill_chunk=128)
        (front / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
        return front

    def _profile(self, repeat: int, role: str) -> Path:
        return self._folder / f"profile-{repeat}-{role}.yaml"

    def _save(self) -> None:
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1), encoding="utf-8")
        part.replace(self._file)


def work(what: str, *arguments: object) -> dict[str, Any]:
    """One function of `grid_work.py` in a process of its own; its result."""
    command = ["-m", "benchmarks.planning.grid_work", what, *map(str, arguments)]
    found: dict[str, Any] = json.loads(_run(command)["said"].splitlines()[-1])
    return found


def _run(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *command], check=False, stdout=subprocess.PIPE, encoding="utf-8"
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with {done.returncode}")
    return {"said": done.stdout}


if __name__ == "__main__":
    main()
