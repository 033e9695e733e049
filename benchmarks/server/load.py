"""What one server carries: recorded sessions of real hidden states from many clients at once.

    python benchmarks/server/load.py BUNDLE WHAT [--sessions 1,8,32] [--tokens 40] ...

BUNDLE must hold all layers in its cloud part (`splitpoint build --back-from 0`). WHAT is one of

    throughput   aggregate decode rate with 1, 8 and 32 sessions at split 10
    guesses      the same with pauses of 50 ms, with and without guesses of the server, never used
    against      split 10 against a server that runs all layers (split 0), the two in turn
    mixed        sessions of splits 5, 10 and 20 in one batch: tokens and logprobs as alone
    idle         8 active sessions beside 500 idle streams and a slow reader
    trace        arrivals of trace CSVs for `--seconds` each, scaled to `--rate` requests a second
                 and to lengths over `--scale-tokens`; `--plot F.png` draws the latencies

Prints a table on stderr and one JSON object last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import time
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import torch

from benchmarks.server import trace as server_trace
from benchmarks.server.load_clients import (
    Played,
    Recording,
    gaps_s,
    opened,
    play_together,
    quantile,
    record,
)
from cloud.sessions.served_model import load_ladders
from codec.ladder import Ladder
from optimizer.artifacts.bundle import open_bundle
from optimizer.export.sources.model_source import open_source
from protos.limits import MAX_DRAFT_IDS
from splitpoint.server_process import serving

SCENARIOS = ("throughput", "guesses", "against", "mixed", "idle", "trace")
TOPICS = (
    "The history of the lighthouse begins with a fire on a hill above the harbour, and",
    "To bake a loaf of bread you need flour, water, salt and some patience, because",
    "In the middle of the night the telephone rang, and when she answered it",
    "A heat pump moves warmth from outside to inside, although it is colder there, by",
    "The first thing to know about sorting algorithms is that",
    "Photosynthesis is the process by which plants turn light into sugar. It",
    "Dear Sir or Madam, I am writing to complain about the train that",
    "Once the volcano had been quiet for a hundred years, the people of the island",
)


class Recorder:
    """Makes recordings, and knows the bundle's codec for each split."""

    def __init__(self, bundle: Path, model: Path) -> None:
        opened = open_bundle(bundle, role="cloud")
        source = open_source(model)
        self._sha256 = opened.plan.model.sha256
        self._ladders = load_ladders(opened)
        self._lossless = Ladder.lossless(opened.plan.model.geometry.hidden_size)
        self._tokenizer = source.load_tokenizer()
        self._model = source.load_model().eval()
        self._made: dict[tuple[int, ...], Recording] = {}

    def sessions(
        self,
        count: int,
        *,
        split: int,
        num_tokens: int,
        prompt_tokens: int | None = None,
        logprobs: bool = False,
    ) -> list[Recording]:
        """`count` sessions: prompts of different lengths, or cut or repeated to `prompt_tokens`."""
        ladder = self._ladders.get(split, self._lossless)
        level = "lossless"
        out = []
        for index in range(count):
            ids = list(self._tokenizer(TOPICS[index % len(TOPICS)])["input_ids"])
            if prompt_tokens is not None:
                ids = (ids * (prompt_tokens // len(ids) + 1))[:prompt_tokens]
            key = (split, num_tokens, *ids)
            if key not in self._made:
                self._made[key] = record(
                    self._model, self._sha256, ladder, level, split=split, prompt=ids,
                    num_tokens=num_tokens, logprobs=logprobs,
                )  # fmt: skip
            out.append(self._made[key])
        return out


def throughput(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    counts = [int(text) for text in arguments.sessions.split(",")]
    recordings = recorder.sessions(max(counts), split=10, num_tokens=arguments.tokens)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    gaps: dict[int, list[float]] = {count: [] for count in counts}
    compute: dict[int, list[float]] = {count: [] for count in counts}
    batches: dict[int, list[float]] = {count: [] for count in counts}
    with serving(arguments.bundle, ("--kv-memory", "1GiB")) as address:
        asyncio.run(play_together(address, recordings[:2]))
        for _ in range(arguments.repeats):
            for count in counts:
                played, rate = asyncio.run(play_together(address, recordings[:count]))
                rates[count].append(rate)
                gaps[count] += gaps_s(played)
                compute[count] += [s for p in played for s in p.compute_s[1:]]
                batches[count] += [float(n) for p in played for n in p.batch_sessions[1:]]
    base = quantile(rates[counts[0]], 0.5)
    return {
        str(count): {
            "tokens_per_s": round(quantile(rates[count], 0.5), 1),
            "tokens_per_s_range": [round(min(rates[count]), 1), round(max(rates[count]), 1)],
            "times_one_session": round(quantile(rates[count], 0.5) / base, 2),
            "step_p50_ms": round(1e3 * quantile(gaps[count], 0.5), 2),
            "step_p95_ms": round(1e3 * quantile(gaps[count], 0.95), 2),
            "batch_p50": quantile(batches[count], 0.5),
            "server_compute_p50_ms": round(1e3 * quantile(compute[count], 0.5), 2),
        }
        for count in counts
    }


def guesses(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    """With and without, in turn. What guessing costs is worst where no guess is used."""
    counts = [int(text) for text in arguments.sessions.split(",")]
    recordings = recorder.sessions(max(counts), split=10, num_tokens=arguments.tokens)
    asking = [
        replace(one, request=replace(one.request, draft_ids=MAX_DRAFT_IDS)) for one in recordings
    ]
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    heard: dict[int, int] = defaultdict(int)
    with serving(arguments.bundle, ("--kv-memory", "1GiB")) as address:
        asyncio.run(play_together(address, recordings[:2]))
        for _ in range(arguments.repeats):
            for count in counts:
                for name, sessions in (("without", recordings), ("with", asking)):
                    play = play_together(address, sessions[:count], pause_s=0.05)
                    played, rate = asyncio.run(play)
                    rates[count, name].append(rate)
                    heard[count] += sum(one.guessed for one in played)
    return {
        str(count): {
            "tokens_per_s": {
                name: round(quantile(rates[count, name], 0.5), 1) for name in ("without", "with")
            },
            "with_over_without": [
                round(b / a, 3)
                for a, b in zip(rates[count, "without"], rates[count, "with"], strict=True)
            ],
            "messages_a_token": round(
                heard[count] / (arguments.repeats * count * arguments.tokens), 2
            ),
        }
        for count in counts
    }


def against(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    """The same clients, prompts and tokens, at both splits in turn."""
    report: dict[str, Any] = {}
    for prompt_tokens in (None, arguments.prompt_tokens):
        rates: dict[int, list[float]] = {0: [], 10: []}
        whole: dict[int, list[float]] = {0: [], 10: []}
        recordings = {
            split: recorder.sessions(
                8, split=split, num_tokens=arguments.tokens, prompt_tokens=prompt_tokens
            )
            for split in rates
        }
        with serving(arguments.bundle, ("--kv-memory", "1GiB")) as address:
            asyncio.run(play_together(address, recordings[10][:2]))
            for _ in range(arguments.repeats):
                for split, sessions in recordings.items():
                    begun_s = time.perf_counter()
                    played, rate = asyncio.run(play_together(address, sessions))
                    rates[split].append(rate)
                    tokens = sum(len(p.tokens) for p in played)
                    whole[split].append(tokens / (time.perf_counter() - begun_s))
        name = "short_prompts" if prompt_tokens is None else f"prompts_of_{prompt_tokens}"
        report[name] = {
            "decode_ratio": round(quantile(rates[10], 0.5) / quantile(rates[0], 0.5), 3),
            "with_prefill_ratio": round(quantile(whole[10], 0.5) / quantile(whole[0], 0.5), 3),
            "decode_tokens_per_s": {s: [round(r, 1) for r in rates[s]] for s in rates},
        }
    return report


def mixed(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    recordings = [
        recorder.sessions(4, split=split, num_tokens=arguments.tokens, logprobs=True)[index]
        for index in range(4)
        for split in (5, 10, 20)
    ]
    with serving(arguments.bundle, ("--kv-memory", "1GiB")) as address:
        alone = [asyncio.run(play_together(address, [one]))[0][0] for one in recordings]
        together, _ = asyncio.run(play_together(address, recordings))
    pairs = list(zip(alone, together, strict=True))
    return {
        "sessions": len(recordings),
        "splits": [5, 10, 20],
        "largest_batch": max(n for p in together for n in p.batch_sessions),
        "same_tokens_as_alone": all(a.tokens == b.tokens for a, b in pairs),
        "same_tokens_as_the_whole_model": sum(
            tuple(b.tokens) == r.tokens for b, r in zip(together, recordings, strict=True)
        ),
        "largest_logprob_difference": max(
            abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)
        ),
    }


async def _beside_idle(
    address: str, active: list[Recording], idle: list[Recording], slow: Recording | None
) -> list[Played]:
    """8 active sessions while `idle` streams are open and one reader never reads."""
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(6 if idle else 1)
    ]
    idlers = [await opened(channels[i % 5 + 1], one) for i, one in enumerate(idle)]
    hog: Any = None
    if slow is not None:  # asks for everything at once and reads nothing
        hog = await opened(channels[1], slow)
        for frame in slow.frames:
            await hog.send_unread(frame)
    players = []
    for one in active:
        players.append(await opened(channels[0], one))
        await players[-1].prefill()
    await asyncio.gather(*(player.decode() for player in players))
    for player in (*players, *idlers, *([hog] if hog else [])):
        player.cancel()
    for channel in channels:
        await channel.close(None)
    return [player.played for player in players]


def idle(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    active = recorder.sessions(8, split=10, num_tokens=arguments.tokens)
    options = ("--kv-memory", "4GiB", "--max-sessions", "600")
    gaps: dict[str, list[float]] = {"alone": [], "beside_500": []}
    with serving(arguments.bundle, options) as address:
        asyncio.run(play_together(address, active[:2]))
        for _ in range(arguments.repeats):
            gaps["alone"] += gaps_s(asyncio.run(_beside_idle(address, active, [], None)))
            idlers = [active[0]] * arguments.idle
            gaps["beside_500"] += gaps_s(
                asyncio.run(_beside_idle(address, active, idlers, active[1]))
            )
            time.sleep(0.5)
    p95 = {name: quantile(values, 0.95) for name, values in gaps.items()}
    return {
        "idle_streams": arguments.idle,
        "step_p50_ms": {n: round(1e3 * quantile(v, 0.5), 2) for n, v in gaps.items()},
        "step_p95_ms": {n: round(1e3 * v, 2) for n, v in p95.items()},
        "p95_growth_pct": round(100 * (p95["beside_500"] / p95["alone"] - 1), 1),
    }


def trace(arguments: argparse.Namespace, recorder: Recorder) -> dict[str, Any]:
    """Each trace in turn, on a server of its own: see `benchmarks.server.trace`."""
    reports: dict[str, Any] = {}
    curves: dict[str, list[server_trace.Request]] = {}
    for path in arguments.traces:
        window = server_trace.read_window(
            path,
            seconds=arguments.seconds,
            rate=arguments.rate,
            scale_tokens=arguments.scale_tokens,
        )
        lengths = sorted({arrival.prompt_tokens for arrival in window.arrivals})
        recordings = {
            length: recorder.sessions(
                1, split=10, num_tokens=server_trace.MOST_OUTPUT, prompt_tokens=length
            )[0]
            for length in lengths
        }
        with serving(arguments.bundle, ("--kv-memory", "1GiB")) as address:
            asyncio.run(play_together(address, [recordings[lengths[0]]]))
            requests = asyncio.run(server_trace.play(address, window, recordings))
        curves[path.stem] = requests
        reports[path.stem] = server_trace.summary(window, requests)
        print(path.stem, json.dumps(reports[path.stem]), file=sys.stderr, flush=True)
    if arguments.plot:
        server_trace.plot(curves, arguments.plot)
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("what", choices=SCENARIOS)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--sessions", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--prompt-tokens", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--traces", type=Path, nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second of a trace")
    parser.add_argument("--scale-tokens", type=int, default=8)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    random.seed(1)
    torch.manual_seed(1)
    scenario = globals()[arguments.what]
    result = scenario(arguments, Recorder(arguments.bundle, arguments.model))
    json.dump(result, sys.stderr, indent=2)
    print(file=sys.stderr)
    machine = {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()}
    versions = {name: version(name) for name in ("torch", "grpcio", "transformers")}
    command = " ".join(sys.argv)
    report = {"what": arguments.what, "command": command, "machine": machine, "versions": versions}
    print(json.dumps(report | {"result": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
