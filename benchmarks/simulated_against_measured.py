"""The simulator's predictions beside a real server, real edge processes and the link emulator.

    python benchmarks/simulated_against_measured.py --bundle BUNDLE [--clients 1 4 12]
    [--seconds 20]

The server has the first core to itself (one thread); the edges and the emulator share the
second. Edges are `replayed_edge.py`: the real edge code whose front sleeps for the device's
time. First the server is calibrated: edges without a link and without a front's time drive it
at every batch size, and one alone tells what codec, sampling and messages take. From these and
the links' own profiles the simulator predicts; then the same scenario (same seed, same thinking
times) is measured.

Needs a bundle with calibrated levels and the model's front (it records one answer). Table on
stderr, JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge.client import EdgeClient
from edge.completion import CompletionRequest
from optimizer.bundle import open_bundle
from optimizer.cost.codec import LevelCost
from optimizer.plan import Plan
from optimizer.simulate.measures import tbt_s, ttft_s
from optimizer.simulate.scenario import (
    Arrivals,
    Clients,
    Drafting,
    Lengths,
    Link,
    MeasuredSteps,
    Scenario,
    Servers,
    Software,
    StepPoint,
)
from optimizer.simulate.simulation import load_setup, simulate
from optimizer.simulate.workload import client_specs
from splitpoint.server_process import serving
from splitpoint.simulation_parts import REAL_PARTS

HERE = Path(__file__).parent
DEVICE = "raspberry-pi-5-8gb"
PROMPT = "List the names of the planets, then list the names of the planets again, one a line."
THINK_S = 0.3
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
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--calibration-seconds", type=float, default=8.0)
    parser.add_argument("--output-tokens", type=int, default=40)
    parser.add_argument("--drafting", action="store_true", help="with drafting and controller")
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    plan = open_bundle(arguments.bundle, role="edge").plan
    with tempfile.TemporaryDirectory() as folder_name, pinned({0}):
        folder = Path(folder_name)
        (folder / "fixed.yaml").write_text(FIXED)
        with serving(arguments.bundle, ["--threads", "1"]) as address:
            os.sched_setaffinity(0, {1})
            bench = Bench(arguments, plan, folder, address)
            bench.record()
            known = bench.calibrate()
            rows = [
                bench.compare(link, clients, known)
                for link in arguments.links
                for clients in arguments.clients
            ]
    for row in rows:
        print(line(row), file=sys.stderr)
    print(json.dumps({"command": " ".join(sys.argv), "calibration": known, "rows": rows}))
    return 0


class Bench:
    """One server, and what is run against it."""

    def __init__(
        self, arguments: argparse.Namespace, plan: Plan, folder: Path, address: str
    ) -> None:
        self._arguments = arguments
        self._plan = plan
        self._folder = folder
        self._address = address
        self._prompt_tokens = 0
        self._start_s = 0.0

    def record(self) -> None:
        """One real answer, and the front's rows for its tokens."""
        rows: list[np.ndarray] = []
        with EdgeClient(self._arguments.bundle, self._address) as client:
            front = client._fronts.get()
            forward = front.forward

            class Recording:
                """The front, with a copy of all that it computes."""

                def forward(self, token_ids: np.ndarray) -> np.ndarray:
                    rows.append(forward(token_ids).copy())
                    return rows[-1]

                def __getattr__(self, name: str) -> Any:
                    return getattr(front, name)

            client._fronts.put(Recording())  # type: ignore[arg-type]
            prompt = client.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
            run = client.start_ids(prompt, CompletionRequest(max_new_tokens=160, draft="off"))
            for _ in run:
                pass
        found = np.concatenate(rows)
        # The answer may have stopped early; positions beyond it repeat its last row.
        longest = len(prompt) + self._arguments.output_tokens + 40
        found = np.concatenate([found, np.repeat(found[-1:], max(longest - len(found), 0), axis=0)])
        self._prompt_tokens = len(prompt)
        np.savez(self._folder / "recording.npz", prompt=np.array(prompt), rows=found)

    def calibrate(self) -> dict[str, Any]:
        """What the server and the software take, from edges without front times and link."""
        seconds = self._arguments.calibration_seconds
        alone = self._steps(self._edges(self._address, 1, seconds, device=None, think_s=0.0))
        crowd: list[dict[str, Any]] = []
        for clients in (2, 4, 8, 12):
            found = self._edges(self._address, clients, seconds / 2, device=None, think_s=0.0)
            crowd += self._steps(found)
        by_batch: dict[int, list[float]] = defaultdict(list)
        for step in [*alone, *crowd]:
            if step["phase"] == "decode" and step["num_rows"] == 1:
                by_batch[step["batch_sessions"]].append(step["cloud_compute_s"])
        # How single steps lie around their batch size's median, for the tails.
        factors = [
            seconds / statistics.median(many)
            for many in by_batch.values()
            if len(many) >= 20
            for seconds in many
        ]
        decode = {n: statistics.median(v) for n, v in sorted(by_batch.items()) if len(v) >= 20}
        chunks: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for step in alone:
            if step["phase"] == "prefill":
                chunks[step["num_rows"]].append(step)
        steps = [s for s in alone if s["phase"] == "decode" and s["num_rows"] == 1]
        longest = max(chunks)

        def median(many: list[dict[str, Any]], key: str) -> float:
            return statistics.median(step[key] for step in many)

        def fixed_and_slope(key: str) -> tuple[float, float]:
            low, high = median(steps, key), median(chunks[longest], key)
            slope = max((high - low) / (longest - 1), 0.0)
            return low - slope, slope

        hidden = self._plan.model.geometry.hidden_size
        encode, decoding = fixed_and_slope("encode_s"), fixed_and_slope("cloud_codec_s")
        positions = np.array([s["first_position"] for s in steps], dtype=float)
        computed = np.array([s["cloud_compute_s"] for s in steps])
        middle = float(np.median(positions))
        early, late = computed[positions < middle], computed[positions >= middle]
        apart = positions[positions >= middle].mean() - positions[positions < middle].mean()
        slope = max(float(np.median(late) - np.median(early)) / apart, 0.0)
        drafted = self._drafting() if self._arguments.drafting else None
        return {
            "decode_s": decode,
            "prefill_s": {n: median(many, "cloud_compute_s") for n, many in chunks.items()},
            "attention_s_per_token": slope,
            "spread": [float(q) for q in np.quantile(factors, np.linspace(0, 0.995, 41))],
            "context_tokens": int(middle),
            "bits_per_element": 8 * (median(steps, "uplink_bytes") - 26 - 9) / hidden,
            "encode_fixed_s": encode[0],
            "encode_s_per_element": encode[1] / hidden,
            "decode_fixed_s": decoding[0],
            "decode_s_per_element": decoding[1] / hidden,
            "sample_s": median(steps, "cloud_sample_s"),
            "message_s": median(steps, "wire_s"),
            "drafting": drafted,
        }

    def _drafting(self) -> dict[str, float]:
        """How often there was a draft, how long, and how well it fared; one edge without a link."""
        found = self._edges(self._address, 1, 10.0, device=DEVICE, think_s=0.0, drafting=True)
        steps = [s for s in self._steps(found) if s["phase"] == "decode"]
        drafted = [s for s in steps if s["num_drafts"]]
        accepted = sum(s["num_new_tokens"] - 1 for s in drafted)
        failed = sum(s["num_new_tokens"] <= s["num_drafts"] for s in drafted)
        return {
            "proposal_share": len(drafted) / len(steps),
            "length": statistics.fmean(s["num_drafts"] for s in drafted) if drafted else 0.0,
            "acceptance": accepted / max(accepted + failed, 1),
        }

    def scenario(self, link: str, clients: int, known: dict[str, Any]) -> Scenario:
        """What is simulated and measured."""
        arguments = self._arguments
        points = [
            StepPoint(rows=n, sessions=n, seconds=s) for n, s in known["decode_s"].items()
        ] + [StepPoint(rows=n, sessions=1, seconds=s) for n, s in known["prefill_s"].items()]
        drafted = known["drafting"]
        return Scenario(
            name=link,
            clients=(
                Clients(
                    name="edges",
                    count=clients,
                    devices={DEVICE: 1.0},
                    link=Link(mix={self._link(link): 1.0}, shared=True),
                    arrivals=Arrivals(kind="closed", think_s=THINK_S),
                    prompt_tokens=Lengths(median=self._prompt_tokens),
                    output_tokens=Lengths(median=arguments.output_tokens),
                ),
            ),
            servers=Servers(
                device="local-epyc-2core",
                measured=MeasuredSteps(
                    points=tuple(points),
                    context_tokens=known["context_tokens"],
                    attention_s_per_token=known["attention_s_per_token"],
                    spread=tuple(known["spread"]),
                ),
            ),
            duration_s=arguments.seconds,
            seed=arguments.seed,
            software=Software(
                edge_message_s=known["message_s"] / 2,
                cloud_message_s=known["message_s"] / 2,
                sample_s=known["sample_s"],
            ),
            levels=(
                LevelCost(
                    name=self._plan.level,
                    **{
                        key: known[key]
                        for key in (
                            "bits_per_element",
                            "encode_fixed_s",
                            "encode_s_per_element",
                            "decode_fixed_s",
                            "decode_s_per_element",
                        )
                    },
                ),
            ),
            drafting=Drafting(length=0)
            if drafted is None
            else Drafting(
                acceptance=drafted["acceptance"],
                proposal_share=drafted["proposal_share"],
                length=max(1, round(drafted["length"])),
                best_length=False,
            ),
            deadline_tbt_s=self._deadline_s(),
        )

    def compare(self, link: str, clients: int, known: dict[str, Any]) -> dict[str, Any]:
        """Simulated and measured latencies of one link and number of edges."""
        scenario = self.scenario(link, clients, known)
        with emulated(self._link(link), self._arguments.seed, self._address) as address:
            emulated_s = time.monotonic()  # the emulator prints its address when its link starts
            found = self._edges(
                address,
                clients,
                self._arguments.seconds,
                device=DEVICE,
                think_s=None,
                scenario=scenario,
                drafting=self._arguments.drafting,
            )
        scenario = started_at(scenario, self._start_s - emulated_s)
        plan = replace(self._plan, drafting="ngram" if self._arguments.drafting else "off")
        record = simulate(load_setup(scenario, plan, {}), REAL_PARTS)
        simulated = {"ttft": ttft_s([record]), "tbt": tbt_s([record])}
        asked = [request for edge in found for request in edge["asked"]]
        times = [request["token_s"] for request in asked if request["token_s"]]
        firsts = [r["token_s"][0] - r["asked_s"] for r in asked if r["token_s"]]
        if not times:
            raise RuntimeError(f"{link}, {clients} edges: no request got a token")
        gaps = np.concatenate([np.diff(t) for t in times])
        measured = {"ttft": np.array(firsts), "tbt": gaps}
        row: dict[str, Any] = {"link": link, "clients": clients, "requests": len(asked)}
        row["failed"] = sum(request["ended"] != "done" for request in asked)
        for name, quantile in (("ttft", 0.5), ("tbt", 0.5), ("tbt", 0.95)):
            ours, theirs = (
                float(np.quantile(side[name], quantile)) for side in (simulated, measured)
            )
            row[f"{name}_p{round(100 * quantile)}"] = {
                "simulated_s": ours,
                "measured_s": theirs,
                "error": ours / theirs - 1,
            }
        print(line(row), file=sys.stderr, flush=True)
        return row

    def _deadline_s(self) -> float | None:
        return 0.2 if self._arguments.drafting else None

    def _link(self, name: str) -> str:
        local = self._folder / f"{name}.yaml"
        return str(local) if local.is_file() else name

    def _edges(
        self,
        address: str,
        clients: int,
        seconds: float,
        *,
        device: str | None,
        think_s: float | None,
        scenario: Scenario | None = None,
        drafting: bool = False,
    ) -> list[dict[str, Any]]:
        """Run edges for `seconds`; think_s None: as the scenario's clients draw it."""
        thoughts: list[list[float]] = [[think_s or 0.0] * 10_000] * clients
        if scenario is not None:
            specs = client_specs(scenario, longest=self._plan.max_tokens)
            thoughts = [[request.at_s for request in spec.requests] for spec in specs]
        # Processes take a while to start.
        self._start_s = start_s = time.monotonic() + 2.0 + 0.9 * clients
        processes = []
        for number, thought in enumerate(thoughts):
            job = self._folder / f"job-{number}.json"
            job.write_text(
                json.dumps(
                    {
                        "bundle": str(self._arguments.bundle),
                        "recording": str(self._folder / "recording.npz"),
                        "address": address,
                        "device": device,
                        "think_s": thought,
                        "start_s": start_s,
                        "stop_s": start_s + seconds,
                        "output_tokens": self._arguments.output_tokens,
                        "deadline_s": self._deadline_s() if drafting else None,
                        "drafting": drafting,
                    }
                )
            )
            command = [sys.executable, str(HERE / "replayed_edge.py"), str(job)]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError("an edge process failed")
        return [json.loads(output) for output in outputs]

    def _steps(self, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The traces of all edges, the first answers' left out: they are warm-up."""
        per_answer = self._arguments.output_tokens
        return [step for edge in found for step in edge["steps"][per_answer:]]


@contextmanager
def emulated(profile: str, seed: int, target: str) -> Iterator[str]:
    """The link emulator in a process of its own, acting the profile out; yields its address."""
    command = [sys.executable, "-m", "splitpoint", "emulate-link", "--profile", profile]
    process = subprocess.Popen(
        [*command, "--seed", str(seed), "--to", target], stdout=subprocess.PIPE, text=True
    )
    try:
        yield (process.stdout.readline() if process.stdout is not None else "").strip()
    finally:
        process.terminate()
        process.wait(10)


def started_at(scenario: Scenario, start_s: float) -> Scenario:
    """The scenario with its link's schedule `start_s` under way."""
    groups = tuple(
        replace(group, link=replace(group.link, start_s=start_s)) for group in scenario.clients
    )
    return replace(scenario, clients=groups)


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """This process and its children on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def line(row: dict[str, Any]) -> str:
    """A row of the table in docs/simulating.md."""
    cells = [row["link"], str(row["clients"])]
    for key in ("ttft_p50", "tbt_p50", "tbt_p95"):
        both, ms = row[key], 1e3
        found = f"{ms * both['simulated_s']:.1f} / {ms * both['measured_s']:.1f}"
        cells.append(f"{found} ({both['error']:+.0%})")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
