"""A recorded cellular uplink with outages: steps within a deadline, fixed lossless or controlled.

    python benchmarks/edge/lte_deadline.py --bundle BUNDLE --trace TRACE.csv [--rtt-ms 40] [--tokens
    400]

Serves BUNDLE (calibrated: `splitpoint build ... --calibrate`) in a process of its own and decodes
through the emulated link, plain steps without drafting. First with the level fixed at lossless; the
deadline is then set so that `--lossless-share` of those steps meet it (or given by --deadline-ms).
Then with `--level auto` and that deadline. Every run starts at the trace's beginning. A step counts
from the front's start to the answer's arrival. Measured; the link is emulated. JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.edge.facts import machine
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from edge.step_trace import StepTrace
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.schedule import read_trace
from hwprofiles.links.shape import LinkShape
from optimizer.policy.retry import RetryPolicy
from splitpoint.server_process import serving

PROMPT = "Tell me a long story about a fox who learns to sail a boat across the northern sea."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--deadline-ms", type=float)
    parser.add_argument("--lossless-share", type=float, default=0.68)
    arguments = parser.parse_args()

    trace = read_trace(arguments.trace)
    shape = LinkShape.from_trace(trace, rtt_s=arguments.rtt_ms / 1e3)
    with serving(arguments.bundle, ["--kv-memory", "256MiB"]) as address:
        fixed = decode(arguments.bundle, address, shape, arguments.tokens, "lossless", None)
        steps_s = decode_steps_s(fixed)
        deadline_s = (
            float(np.quantile(steps_s, arguments.lossless_share))
            if arguments.deadline_ms is None
            else arguments.deadline_ms / 1e3
        )
        rows = {"lossless": row(fixed, deadline_s)}
        for name, deadline in (("auto, no deadline", None), ("auto, deadline", deadline_s)):
            run = decode(arguments.bundle, address, shape, arguments.tokens, "auto", deadline)
            rows[name] = row(run, deadline_s)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "link": {"trace": trace.name, "rtt_ms": arguments.rtt_ms, "emulated": True},
        "deadline_ms": 1e3 * deadline_s,
        "runs": rows,
    }
    for name, figures in rows.items():
        print(
            f"{name:>18}: {100 * figures['share_in_time']:.1f} % of {figures['steps']} steps "
            f"within {1e3 * deadline_s:.0f} ms, {figures['finish_reason']}, "
            f"{figures['level_counts']}",
            file=sys.stderr,
        )
    print(json.dumps(report))
    return 0


def decode(
    bundle: Path, address: str, shape: LinkShape, tokens: int, level: str, deadline_s: float | None
) -> Completion:
    host, _, port = address.rpartition(":")
    request = CompletionRequest(
        max_new_tokens=tokens, level=level, deadline_tbt_s=deadline_s, draft="off", ignore_eos=True
    )
    with (
        EmulatedLink(target=(host, int(port)), shape=shape) as link,
        EdgeClient(
            bundle, f"127.0.0.1:{link.address[1]}", retry_policy=RetryPolicy(connect_s=30)
        ) as client,
    ):
        return client.complete([{"role": "user", "content": PROMPT}], request)


def decode_steps(completion: Completion) -> list[StepTrace]:
    return [step for step in completion.steps if step.phase == "decode"]


def decode_steps_s(completion: Completion) -> list[float]:
    return [step.edge_s + step.round_trip_s for step in decode_steps(completion)]


def row(completion: Completion, deadline_s: float) -> dict[str, Any]:
    steps = decode_steps(completion)
    times = np.array(decode_steps_s(completion))
    return {
        "steps": len(steps),
        "share_in_time": float(np.mean(times <= deadline_s)),
        "step_ms": {str(q): 1e3 * float(np.quantile(times, q)) for q in (0.05, 0.5, 0.95)},
        "finish_reason": completion.finish_reason,
        "finish_detail": completion.finish_detail,
        "reconnects": completion.reconnects,
        "level_counts": completion.to_json()["level_counts"],
        "bytes_a_step": float(np.mean([step.uplink_bytes for step in steps])),
        "decisions": [step.decision for step in steps if step.decision],
    }


if __name__ == "__main__":
    sys.exit(main())
