"""Arrivals of a real trace played against a server for a fixed time: who gets what, how soon.

The trace's times are stretched so that its first requests fill the window at `--rate` a second;
bursts and lulls keep their shape. Token counts are divided by `--scale-tokens`, rounded to what
was recorded and capped. The window is all the time there is: what has not ended by then (and a
short grace) is cancelled and counted as unfinished, so a server that cannot keep up shows in the
counts and not in a benchmark that never ends.
"""

from __future__ import annotations

import asyncio
import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.server.load_clients import Played, Player, Recording, gaps_s, quantile
from protos import wire

# What a request is cut to, after scaling; prompts are rounded up to PROMPT_STEP: few recordings.
MOST_PROMPT = 256
MOST_OUTPUT = 48
PROMPT_STEP = 32
GRACE_S = 3.0


@dataclass(frozen=True)
class Arrival:
    """One request: seconds after the window's begin, and its sizes after scaling."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    capped: bool


@dataclass
class Request:
    """What became of one arrival. `tries`: how often it was sent away before it was let in."""

    played: Played | None = None
    arrived_s: float = 0.0
    tries: int = 0
    finished: bool = False
    error: str = ""


@dataclass(frozen=True)
class Window:
    """A trace scaled to this machine. time_scale: seconds here for one of the trace's."""

    arrivals: tuple[Arrival, ...]
    seconds: float
    time_scale: float


def read_window(path: Path, *, seconds: float, rate: float, scale_tokens: int) -> Window:
    """The first `seconds * rate` requests of a trace CSV (t_s, prompt_tokens, output_tokens)."""
    with path.open() as file:
        rows = list(csv.DictReader(file))[: max(2, round(seconds * rate))]
    begin_s, span_s = float(rows[0]["t_s"]), float(rows[-1]["t_s"]) - float(rows[0]["t_s"])
    time_scale = seconds * (len(rows) - 1) / len(rows) / span_s
    arrivals = []
    for row in rows:
        prompt = int(row["prompt_tokens"]) // scale_tokens
        output = int(row["output_tokens"]) // scale_tokens
        arrivals.append(
            Arrival(
                at_s=(float(row["t_s"]) - begin_s) * time_scale,
                prompt_tokens=max(
                    PROMPT_STEP, min(-(-prompt // PROMPT_STEP) * PROMPT_STEP, MOST_PROMPT)
                ),
                output_tokens=max(2, min(output, MOST_OUTPUT)),
                capped=prompt > MOST_PROMPT or output > MOST_OUTPUT,
            )
        )
    return Window(tuple(arrivals), seconds, time_scale)


async def play(address: str, window: Window, recordings: dict[int, Recording]) -> list[Request]:
    """All arrivals of the window at their times. recordings: by prompt length, MOST_OUTPUT long."""
    requests = [Request() for _ in window.arrivals]
    cuts = [recordings[a.prompt_tokens].cut(a.output_tokens) for a in window.arrivals]
    for cut in cuts:
        assert cut.messages  # encoded before the clock runs
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        begun_s = time.perf_counter()
        tasks = [
            asyncio.create_task(_one(channel, begun_s + arrival.at_s, cut, request))
            for arrival, cut, request in zip(window.arrivals, cuts, requests, strict=True)
        ]
        await asyncio.wait(tasks, timeout=window.seconds + GRACE_S)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=GRACE_S)
    return requests


async def _one(
    channel: grpc.aio.Channel, at_s: float, recording: Recording, request: Request
) -> None:
    await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
    request.arrived_s = time.perf_counter()
    player: Player | None = None
    try:
        while player is None:  # as an edge does: come back when the server says so
            player = Player(channel, recording)
            try:
                await player.open()
            except grpc.aio.AioRpcError as error:
                pairs: Any = error.trailing_metadata() or ()
                trailers = dict(pairs)
                if wire.RETRY_AFTER_KEY not in trailers:
                    raise
                player = None
                request.tries += 1
                await asyncio.sleep(float(trailers[wire.RETRY_AFTER_KEY]))
        request.played = player.played
        await player.prefill()
        await player.decode()
        await player.close()
        request.finished = True
    except (grpc.aio.AioRpcError, RuntimeError) as error:
        details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        request.error = str(details)
    finally:
        if player is not None and not request.finished:
            player.cancel()


def ttfts_s(requests: Sequence[Request]) -> list[float]:
    """From arrival, waits at a full server included, to the first token, of those that got one."""
    return [
        request.played.token_at_s[0] - request.arrived_s
        for request in requests
        if request.played is not None and request.played.token_at_s
    ]


def tbts_s(requests: Sequence[Request]) -> list[float]:
    return gaps_s([r.played for r in requests if r.played is not None])


def summary(window: Window, requests: Sequence[Request]) -> dict[str, Any]:
    """Counts and latencies of one window. Quantiles are of what came, so read the counts too."""
    played = [r.played for r in requests if r.played is not None]
    ttft, tbt = ttfts_s(requests), tbts_s(requests)
    errors = sorted({r.error for r in requests if r.error})
    return {
        "window_s": window.seconds,
        "time_scale": round(window.time_scale, 3),
        "requests": len(requests),
        "requests_per_s": round(len(requests) / window.seconds, 2),
        "prompt_tokens_mean": round(
            sum(a.prompt_tokens for a in window.arrivals) / len(window.arrivals), 1
        ),
        "output_tokens_mean": round(
            sum(a.output_tokens for a in window.arrivals) / len(window.arrivals), 1
        ),
        "capped_share": round(sum(a.capped for a in window.arrivals) / len(window.arrivals), 3),
        "finished": sum(r.finished for r in requests),
        "unfinished": sum(not r.finished and not r.error for r in requests),
        "without_a_token": sum(r.played is None or not r.played.token_at_s for r in requests),
        "sent_away_and_back": sum(r.tries > 0 for r in requests),
        "failed": sum(bool(r.error) for r in requests),
        "errors": errors[:3],
        "tokens": sum(len(p.tokens) for p in played),
        "ttft_s": {f"p{q}": round(quantile(ttft, q / 100), 3) for q in (50, 95, 99)},
        "tbt_s": {f"p{q}": round(quantile(tbt, q / 100), 4) for q in (50, 95, 99)},
        "largest_batch": max((n for p in played for n in p.batch_sessions), default=0),
    }


def plot(curves: dict[str, list[Request]], path: Path) -> None:
    """Distributions of both latencies, one line a trace; requests without a token never arrive."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for name, requests in curves.items():
        columns = ((ttfts_s(requests), len(requests)), (tbts_s(requests), 0))
        for axis, (values, wanted) in zip(axes, columns, strict=True):
            count = max(wanted, len(values), 1)
            share = [(i + 1) / count for i in range(len(values))]
            label = f"{name} ({len(requests)} requests)"
            axis.plot([1e3 * v for v in sorted(values)], share, label=label)
    for axis, title in zip(axes, ("time to first token", "time between tokens"), strict=True):
        axis.set(xscale="log", xlabel="ms", title=title, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share of requests / steps")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
