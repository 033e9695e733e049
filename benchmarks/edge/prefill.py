"""Time to first token of a long prompt over a thin uplink, against raw fp16 without pipelining.

    python benchmarks/edge/prefill.py --bundle BUNDLE [--prompt-tokens 512] [--rtt-ms 40] [--up-mbps
    4]

Serves BUNDLE (calibrated) in a process of its own behind the emulated link. Four ways, in turn:

- `fp16, whole`: the prompt as one frame, nothing overlapped, as a split without a codec does. The
  frame really sent is lossless, which is larger than fp16; the link of these runs is faster by the
  same ratio, so that the frame takes exactly the time that 2 bytes an element take.
- `lossless, pipelined` and `default level, pipelined`: chunks as the edge chooses them.
- `ids, in the cloud`: --prefill cloud, for a bundle whose server holds every layer.

Bound of a run: max(edge compute, bytes / rate, cloud compute) + RTT, each from the run's own trace.
Warm-up thrown away; medians of --repeats, smallest and largest beside them. JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.edge.facts import machine, summary
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from splitpoint.server_process import serving

TEXT = (
    "A heat pump moves heat from the cold air outside into the house. It compresses a gas, which "
    "becomes hot, gives the heat away, and lets the gas expand again, which makes it colder than "
    "the air it came from. "
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    parser.add_argument("--up-mbps", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--level", default="auto")
    parser.add_argument("--edge-cpus", help="pin this process, such as 0")
    parser.add_argument("--edge-threads", type=int)
    parser.add_argument("--cloud-threads", type=int)
    arguments = parser.parse_args()
    if arguments.edge_cpus:
        from edge.device.power import pin_to

        pin_to(arguments.edge_cpus)

    rate = arguments.up_mbps * 1e6 / 8
    rtt_s = arguments.rtt_ms / 1e3
    options = ["--kv-memory", "256MiB"]
    if arguments.cloud_threads:
        options += ["--threads", str(arguments.cloud_threads)]
    runs: dict[str, list[dict[str, float]]] = {}
    with serving(arguments.bundle, options) as address:
        ways: list[tuple[str, str, int | None, str]] = [
            ("fp16, whole", "lossless", arguments.prompt_tokens, "edge"),
            ("lossless, pipelined", "lossless", None, "edge"),
            ("default level, pipelined", arguments.level, None, "edge"),
            ("ids, in the cloud", arguments.level, None, "cloud"),
        ]
        inflation = 1.0
        for repeat in range(arguments.repeats + 1):
            for name, level, chunk, place in ways:
                link_rate = rate * (inflation if chunk else 1.0)
                completion = first_token(
                    arguments.bundle,
                    address,
                    shape=LinkShape.fixed(
                        rtt_s=rtt_s, up_bytes_per_s=link_rate, down_bytes_per_s=20e6 / 8
                    ),
                    level=level,
                    chunk=chunk,
                    num_tokens=arguments.prompt_tokens,
                    threads=arguments.edge_threads,
                    prefill=place,
                )
                if chunk:  # what the lossless frame is larger than fp16 by
                    sent = sum(step.uplink_bytes for step in completion.steps)
                    inflation = sent / (2 * arguments.prompt_tokens * completion.hidden_size)
                if repeat:
                    runs.setdefault(name, []).append(figures(completion, link_rate, rtt_s))
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "link": {"rtt_ms": arguments.rtt_ms, "up_mbps": arguments.up_mbps, "emulated": True},
        "prompt_tokens": arguments.prompt_tokens,
        "ways": {
            name: {key: summary([run[key] for run in found]) for key in found[0]}
            for name, found in runs.items()
        },
    }
    base = report["ways"]["fp16, whole"]["ttft_s"]["median"]
    report["times_shorter"] = {
        name: base / way["ttft_s"]["median"] for name, way in report["ways"].items()
    }
    for name, way in report["ways"].items():
        print(
            f"{name:>26}: TTFT {1e3 * way['ttft_s']['median']:.0f} ms "
            f"({report['times_shorter'][name]:.2f}x), bound {1e3 * way['bound_s']['median']:.0f} "
            f"(edge {1e3 * way['edge_s']['median']:.0f}, link {1e3 * way['link_s']['median']:.0f}, "
            f"cloud {1e3 * way['cloud_s']['median']:.0f}), over the bound by "
            f"{100 * way['over_bound']['median']:.0f} %, {way['chunks']['median']:.0f} chunks",
            file=sys.stderr,
        )
    print(json.dumps(report))
    return 0


def first_token(
    bundle: Path,
    address: str,
    *,
    shape: LinkShape,
    level: str,
    chunk: int | None,
    num_tokens: int,
    threads: int | None,
    prefill: str,
) -> Completion:
    host, _, port = address.rpartition(":")
    with (
        EmulatedLink(target=(host, int(port)), shape=shape) as link,
        EdgeClient(
            bundle, f"127.0.0.1:{link.address[1]}", prefill_chunk=chunk, threads=threads
        ) as client,
    ):
        ids = (client.tokenizer.encode(TEXT) * 40)[:num_tokens]
        # The channel is up before the clock runs: a device keeps its connection.
        client.start_ids(ids[:8], CompletionRequest(max_new_tokens=1, draft="off"))
        client.complete(TEXT, CompletionRequest(max_new_tokens=1, draft="off"))
        request = CompletionRequest(max_new_tokens=1, level=level, draft="off", prefill=prefill)
        run = client.start_ids(ids, request)
        for _ in run:
            pass
        return run.completion


def figures(completion: Completion, rate: float, rtt_s: float) -> dict[str, float]:
    steps = completion.steps
    edge_s = sum(step.edge_s for step in steps)
    link_s = sum(step.uplink_bytes for step in steps) / rate
    cloud_s = sum(step.cloud_s - step.cloud_queue_s for step in steps)
    bound_s = max(edge_s, link_s, cloud_s) + rtt_s
    return {
        "ttft_s": completion.ttft_s,
        "edge_s": edge_s,
        "link_s": link_s,
        "cloud_s": cloud_s,
        "bound_s": bound_s,
        "over_bound": completion.ttft_s / bound_s - 1,
        "chunks": len(steps),
        "bytes": sum(step.uplink_bytes for step in steps),
        "first_chunk": steps[0].num_rows,
        "largest_chunk": max(step.num_rows for step in steps),
    }


if __name__ == "__main__":
    sys.exit(main())
