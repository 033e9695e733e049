"""The simulator's predictions beside a real server, real edge processes and the link emulator.

    python benchmarks/simulation/simulated_against_measured.py --bundle BUNDLE [--clients 1 4 12]
    python benchmarks/simulation/simulated_against_measured.py --bundle BUNDLE --drafting --links 4g
    python benchmarks/simulation/simulated_against_measured.py --bundle BUNDLE --in-flight --mixed \
        --links 4g

`replayed_fleet.py` says what is measured, `replay_calibration.py` what the simulator is told
beforehand. From that and the links' own profiles it predicts; then the same scenario (same seed,
same thinking times, same moment of the link's schedule) is measured. With `--drafting` prompt
look-up, the controller and two faults are on: a link outage and a lost server; no frame is sent
ahead of an outstanding answer. With `--in-flight` prompt look-up sends frames ahead, without
controller and faults. `--mixed` adds a cell: three classes of edges at once, each with another
device, link, thinking time and length of answer (`MIX`).

Needs a bundle with calibrated levels and the model's front (it records one answer). Table on
stderr, JSON last.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.edge.facts import machine
from benchmarks.simulation.replay_calibration import (
    AT_ONCE,
    STAGES,
    Calibration,
    calibrate,
    drafted,
    flown,
)
from benchmarks.simulation.replayed_fleet import DEVICE, EdgeGroup, Fleet, Run, emulated, pinned
from hwprofiles.links.catalog import load_link
from optimizer.artifacts.bundle import open_bundle
from optimizer.artifacts.plan import Plan
from optimizer.simulate.measures import tbt_s, ttft_s
from optimizer.simulate.record import PARTS, Record
from optimizer.simulate.scenario import (
    Arrivals,
    Clients,
    DraftingScenario,
    DraftOutcome,
    Fault,
    Lengths,
    Link,
    MeasuredFlight,
    Scenario,
    Servers,
)
from optimizer.simulate.setup import load_setup
from optimizer.simulate.simulation import simulate
from optimizer.simulate.workload import client_specs
from splitpoint.server_process import serving

PROMPT = "List the names of the planets, then list the names of the planets again, one a line."
THINK_S = 0.3
DEADLINE_S = 0.2
# When, as shares of the run, and how many seconds long.
OUTAGE, LOSS = (0.3, 1.0), (0.6, 2.0)


@dataclass(frozen=True, kw_only=True)
class MixedClass:
    """One class of the mixed scenario."""

    name: str
    count: int
    device: str
    link: str
    think_s: float
    output_tokens: int


MIX = (
    MixedClass(
        name="boards", count=3, device=DEVICE, link="wifi", think_s=1.0, output_tokens=40
    ),
    MixedClass(
        name="phones", count=3, device="phone-snapdragon-8-gen-3", link="4g", think_s=0.3,
        output_tokens=24,
    ),
    MixedClass(
        name="kiosks", count=2, device="jetson-orin-nano-8gb", link="fixed", think_s=2.0,
        output_tokens=32,
    ),
)  # fmt: skip
FIXED = """
name: fixed
description: 40 ms, 10 Mbit/s down, 2 Mbit/s up, constant
up_bytes_per_s: {p05: 250000, p50: 250000, p95: 250000, measured: false, source: set}
down_bytes_per_s: {p05: 1250000, p50: 1250000, p95: 1250000, measured: false, source: set}
rtt_s: {p05: 0.04, p50: 0.04, p95: 0.04, measured: false, source: set}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 12])
    parser.add_argument("--links", nargs="+", default=["wifi", "4g", "fixed"])
    parser.add_argument("--seconds", type=float, help="of each cell (16; 45 with drafting)")
    parser.add_argument("--calibration-seconds", type=float, default=8.0)
    parser.add_argument("--output-tokens", type=int, default=40)
    parser.add_argument("--drafting", action="store_true", help="drafting, controller, faults")
    parser.add_argument("--in-flight", action="store_true", help="drafts ahead of answers")
    parser.add_argument("--mixed", action="store_true", help="one more cell: classes of edges")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.seconds is None:
        arguments.seconds = 45.0 if arguments.drafting else 16.0
    plan = open_bundle(arguments.bundle, role="edge").plan
    # A server that is lost is dialled in vain; that is the fault, not an error to tell.
    logging.getLogger("hwprofiles.emulator.relay").setLevel(logging.ERROR)
    facts = machine()  # with the load before we make our own
    with tempfile.TemporaryDirectory() as folder_name, pinned({0}):
        folder = Path(folder_name)
        (folder / "fixed.yaml").write_text(FIXED)
        with serving(arguments.bundle, ["--threads", "1"]) as address:
            os.sched_setaffinity(0, {1})
            fleet = Fleet(
                bundle=arguments.bundle,
                address=address,
                folder=folder,
                output_tokens=arguments.output_tokens,
            )
            fleet.record(PROMPT)
            known = calibrate(fleet, plan, seconds=arguments.calibration_seconds)
            bench = Bench(arguments, plan, fleet, known)
            rows = [
                bench.compare(str(folder / "fixed.yaml") if link == "fixed" else link, clients)
                for link in arguments.links
                for clients in arguments.clients
            ]
            if arguments.mixed:
                rows.append(bench.compare_mix(folder))
    for row in rows:
        print(line(row), file=sys.stderr)
    found = {"command": " ".join(sys.argv), "machine": facts, "calibration": known.to_json()}
    print(json.dumps({**found, "rows": rows}))
    return 0


class Bench:
    """One calibrated server, and what is compared on it."""

    def __init__(
        self, arguments: argparse.Namespace, plan: Plan, fleet: Fleet, known: Calibration
    ) -> None:
        self._arguments = arguments
        self._fleet = fleet
        self._known = known
        self._outcomes: dict[str, tuple[DraftOutcome, ...]] = {}
        self._flights: dict[str, tuple[MeasuredFlight, ...]] = {}
        drafts = arguments.drafting or arguments.in_flight
        self._plan = replace(plan, drafting="ngram" if drafts else "off")

    def compare(self, link: str, clients: int) -> dict[str, Any]:
        """Simulated and measured latencies of one link and number of edges."""
        seed = self._arguments.seed
        scenario = self.scenario(link, clients)
        thoughts = [
            [request.at_s for request in spec.requests]
            for spec in client_specs(scenario, longest=self._plan.max_tokens)
        ]
        with emulated(load_link(link).shape(seed=seed), self._fleet.address) as way:
            run = self._fleet.run(
                thoughts,
                scenario.duration_s,
                way=way,
                drafting=self._plan.drafting != "off",
                in_flight=self._arguments.in_flight,
                deadline_s=scenario.deadline_tbt_s,
                faults=scenario.faults,
            )
        scenario = started_at(scenario, run.link_age_s)
        record = simulate(load_setup(scenario, self._plan, {}))
        row = {"link": Path(link).stem, "clients": clients, **compared(record, run)}
        print(line(row), file=sys.stderr, flush=True)
        return row

    def compare_mix(self, folder: Path) -> dict[str, Any]:
        """The classes of `MIX` at once; quantiles over all of them. Steps are drawn from
        the flights of all links together."""
        arguments, seed = self._arguments, self._arguments.seed
        names = [str(folder / "fixed.yaml") if one.link == "fixed" else one.link for one in MIX]
        base = self.scenario(names[0], 1)
        scenario = replace(
            base,
            name="mixed",
            drafting=self._drafting_over(names),
            clients=tuple(
                replace(
                    base.clients[0],
                    name=one.name,
                    count=one.count,
                    devices={one.device: 1.0},
                    link=Link(mix={name: 1.0}, shared=True),
                    arrivals=Arrivals(kind="closed", think_s=one.think_s),
                    output_tokens=Lengths(median=one.output_tokens),
                )
                for one, name in zip(MIX, names, strict=True)
            ),
        )
        specs = list(client_specs(scenario, longest=self._plan.max_tokens))
        with ExitStack() as stack:
            groups = [
                EdgeGroup(
                    thoughts=[
                        [request.at_s for request in spec.requests]
                        for spec in specs
                        if spec.group == index
                    ],
                    way=stack.enter_context(
                        emulated(load_link(name).shape(seed=seed), self._fleet.address)
                    ),
                    device=one.device,
                    drafting=self._plan.drafting != "off",
                    in_flight=arguments.in_flight,
                    output_tokens=one.output_tokens,
                )
                for index, (one, name) in enumerate(zip(MIX, names, strict=True))
            ]
            runs = self._fleet.run_together(groups, scenario.duration_s)
        scenario = replace(
            scenario,
            clients=tuple(
                replace(group, link=replace(group.link, start_s=run.link_age_s))
                for group, run in zip(scenario.clients, runs, strict=True)
            ),
        )
        record = simulate(load_setup(scenario, self._plan, {}))
        together = Run(edges=[edge for run in runs for edge in run.edges], link_age_s=0.0)
        row = {"link": "mixed", "clients": len(specs), **compared(record, together)}
        print(line(row), file=sys.stderr, flush=True)
        return row

    def _drafting(self, link: str) -> DraftingScenario:
        """How guesses fare: measured on one edge over the link held at its median, without
        controller and faults; the text is the same, the run is not."""
        if self._arguments.in_flight:
            return DraftingScenario(flights=self._flights_over(link))
        if not self._arguments.drafting:
            return DraftingScenario(length=0)
        if link not in self._outcomes:
            with emulated(load_link(link).steady_shape(), self._fleet.address) as way:
                seconds = self._arguments.calibration_seconds
                run = self._fleet.run([AT_ONCE], seconds, way=way, drafting=True)
            self._outcomes[link] = drafted(run)
        return DraftingScenario(outcomes=self._outcomes[link])

    def _drafting_over(self, links: Sequence[str]) -> DraftingScenario:
        found = [self._drafting(link) for link in links]
        return replace(
            found[0],
            outcomes=tuple(one for item in found for one in item.outcomes),
            flights=tuple(one for item in found for one in item.flights),
        )

    def _flights_over(self, link: str) -> tuple[MeasuredFlight, ...]:
        """The same of steps with the frames that leave ahead of their answers."""
        if link not in self._flights:
            with emulated(load_link(link).steady_shape(), self._fleet.address) as way:
                seconds = self._arguments.calibration_seconds
                run = self._fleet.run([AT_ONCE], seconds, way=way, drafting=True, in_flight=True)
            self._flights[link] = flown(run)
        return self._flights[link]

    def scenario(self, link: str, clients: int) -> Scenario:
        """What is simulated and measured."""
        arguments, known = self._arguments, self._known
        seconds = arguments.seconds
        return Scenario(
            name=link,
            clients=(
                Clients(
                    name="edges",
                    count=clients,
                    devices={DEVICE: 1.0},
                    link=Link(mix={link: 1.0}, shared=True),
                    arrivals=Arrivals(kind="closed", think_s=THINK_S),
                    prompt_tokens=Lengths(median=self._fleet.prompt_tokens),
                    output_tokens=Lengths(median=arguments.output_tokens),
                ),
            ),
            servers=Servers(device="local-epyc-2core", measured=known.measured),
            duration_s=seconds,
            seed=arguments.seed,
            software=known.software,
            levels=known.levels,
            drafting=self._drafting(link),
            deadline_tbt_s=DEADLINE_S if arguments.drafting else None,
            faults=faults(seconds) if arguments.drafting else (),
        )


def faults(seconds: float) -> tuple[Fault, ...]:
    """An outage of the link, and a server that is gone for a while."""
    return tuple(
        Fault(kind=kind, at_s=at * seconds, duration_s=lasts)  # type: ignore[arg-type]
        for kind, (at, lasts) in (("link_outage", OUTAGE), ("server_loss", LOSS))
    )


def compared(record: Record, run: Run) -> dict[str, Any]:
    """Quantiles and errors; where the time of a step goes, on both sides."""
    times = [question["token_s"] for question in run.asked if question["token_s"]]
    firsts = [
        question["token_s"][0] - question["asked_s"]
        for question in run.asked
        if question["token_s"]
    ]
    if not times:
        raise RuntimeError("no request got a token")
    simulated = {"ttft": ttft_s([record]), "tbt": tbt_s([record])}
    measured = {"ttft": np.array(firsts), "tbt": np.concatenate([np.diff(t) for t in times])}
    found: dict[str, Any] = {
        "requests": {"simulated": len(record.requests), "measured": len(run.asked)},
        "unfinished": {
            "simulated": sum(row.outcome != "done" for row in record.requests),
            "measured": sum(question["ended"] != "done" for question in run.asked),
        },
    }
    for name, key, of in (
        ("ttft_p50", "ttft", np.median),
        ("tbt_p50", "tbt", np.median),
        ("tbt_p95", "tbt", lambda values: np.quantile(values, 0.95)),
        ("tbt_mean", "tbt", np.mean),
    ):
        ours, theirs = float(of(simulated[key])), float(of(measured[key]))
        found[name] = {
            "simulated_s": ours,
            "measured_s": theirs,
            # Tokens that came together are 0 apart.
            "error": ours / theirs - 1 if theirs else float(ours > 0),
        }
    found["step_s"] = {
        "simulated": {
            part: float(seconds) / max(record.steps, 1)
            for part, seconds in zip(PARTS, record.step_parts_s, strict=True)
        },
        "measured": {
            key: float(np.mean([step[key] for step in steps]))
            for key in STAGES
            if (steps := [step for step in run.steps if step["phase"] == "decode"])
        },
    }
    return found


def started_at(scenario: Scenario, start_s: float) -> Scenario:
    """The scenario with its link's schedule `start_s` under way."""
    groups = tuple(
        replace(group, link=replace(group.link, start_s=start_s)) for group in scenario.clients
    )
    return replace(scenario, clients=groups)


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/results/simulator.md."""
    cells = [row["link"], str(row["clients"])]
    for key in ("ttft_p50", "tbt_p50", "tbt_p95", "tbt_mean"):
        both, ms = row[key], 1e3
        found = f"{ms * both['simulated_s']:.1f} / {ms * both['measured_s']:.1f}"
        cells.append(f"{found} ({both['error']:+.0%})")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
