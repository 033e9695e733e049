"""How long one move towards the cloud stops an answer: by keys and values, and by token ids.

    python -m benchmarks.edge.kv_moves --segmented BUNDLE [--rtt 0.04] [--mbit 20]
        [--tokens 256,512,1024] [--repeats 5] [--to 5]

SEGMENTED was built with --splits, in float32 and at `lossless`. Both sides run here, with the link
emulator in between. A prompt of so many tokens, six tokens of the answer, then the split moves. The
pause is the time from the last token before the move to the first one behind it. The lossy levels
are those of `codec.kv.frame`, in place of the lossless one. JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.edge.facts import machine
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.policy import move_transport
from protos.addresses import parse_address
from splitpoint.server_process import serving

WAYS = (("ids", ""), ("kv", "lossless"), ("kv", "kv8"), ("kv", "kv4"), ("auto", "lossless"))
MOVES_AT = 6
TEXT = Path("optimizer/export/calibration/shipped_text.txt")


def one_move(client: EdgeClient, prompt: list[int], split: int, way: str) -> dict[str, Any]:
    """An answer whose split moves to `split` after six tokens."""
    request = CompletionRequest(
        max_new_tokens=MOVES_AT + 6, draft="off", ignore_eos=True, move_by=way
    )
    run = client.start_ids(prompt, request)
    for index, _ in enumerate(run, start=1):
        if index == MOVES_AT:
            run.move_to(split)
    done = run.completion
    (move,) = done.to_json()["moves"]
    at = move["at_token"]
    times = done.token_times_s
    return {
        "by": move["by"],
        "pause_s": times[at] - times[at - 1],
        "uplink_bytes": move["uplink_bytes"],
        "cloud_s": move["cloud_s"],
        "tbt_before_s": median(later - sooner for sooner, later in pairwise(times[:at])),
        "tokens": done.token_ids,
    }


def row(count: int, way: str, level: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the runs of one way, and every pause."""
    keys = ("pause_s", "uplink_bytes", "cloud_s", "tbt_before_s")
    return {
        "tokens": count,
        "asked": way,
        "level": level,
        "by": [run["by"] for run in runs],
        **{key: median(run[key] for run in runs) for key in keys},
        "pauses_s": [round(run["pause_s"], 3) for run in runs],
        "answers": [list(run["tokens"]) for run in runs],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segmented", type=Path, required=True)
    parser.add_argument("--rtt", type=float, default=0.04)
    parser.add_argument("--mbit", type=float, default=20.0)
    parser.add_argument("--tokens", default="256,512,1024")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--to", type=int, default=5)
    arguments = parser.parse_args()
    rate = arguments.mbit * 1e6 / 8
    shape = LinkShape.fixed(rtt_s=arguments.rtt, up_bytes_per_s=rate, down_bytes_per_s=rate)
    rows: list[dict[str, Any]] = []
    with serving(arguments.segmented, ["--kv-memory", "1GiB"]) as address:
        target = parse_address(address)
        with (
            EmulatedLink(target=(target.host, target.port), shape=shape) as link,
            EdgeClient(arguments.segmented, f"127.0.0.1:{link.address[1]}") as client,
        ):
            text = client.tokenizer.encode(TEXT.read_text(encoding="utf-8")[:60_000])
            for count in map(int, arguments.tokens.split(",")):
                runs: dict[tuple[str, str], list[dict[str, Any]]] = {way: [] for way in WAYS}
                for number in range(arguments.repeats + 1):
                    for way, level in WAYS:  # in turn: the machine's speed changes
                        move_transport.KV_LEVEL_OF[True] = level or "lossless"
                        # Other tokens each time: nothing of the prompt is known already.
                        prompt = text[number * 61 :][:count]
                        done = one_move(client, prompt, arguments.to, way)
                        if number:  # the first round warms up
                            runs[way, level].append(done)
                rows += [row(count, *way, of_way) for way, of_way in runs.items()]
                print(*rows[-len(WAYS) :], sep="\n", file=sys.stderr)
    print(
        json.dumps({"command": " ".join(["python", *sys.argv]), "machine": machine(), "rows": rows})
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
