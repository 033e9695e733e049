"""Answers whose split moves, against answers whose split stays: the tokens are the same.

    python benchmarks/edge/moves.py --segmented BUNDLE --whole BUNDLE [--cases 20] [--tokens 120]
        [--long 4000] [--move-by auto|kv|ids]

SEGMENTED was built with --splits, WHOLE with --split at its last split, both of one model in
float32 and at `lossless`. WHOLE is served, and takes as many tokens as the long answer has.

- cases: answers of `tokens` tokens whose split moves at random moments, half of them with drafts
  and half over a link whose connections drop at random, also right after a move.
- long: one answer of so many tokens with --context handover on a device whose cache holds fewer,
  against the same answer of WHOLE.

JSON last; exit 1 when one token differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.edge.facts import machine
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import MOVE_WAYS, CompletionRequest
from edge.generation.report import Completion
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.policy.retry import RetryPolicy
from protos.addresses import parse_address
from splitpoint.server_process import serving

PROMPTS = (
    "Tell me a long story about a fox who learns to sail a boat across the northern sea.",
    "Explain how a bicycle stays upright, step by step.",
    "Write a Python class for a queue with two stacks, and explain it.",
    "List twenty things to see in Lisbon, with a sentence for each.",
)
SHAPE = LinkShape.fixed(rtt_s=0.01, up_bytes_per_s=12.5e6, down_bytes_per_s=12.5e6)
PATIENT = RetryPolicy(connect_s=60, step_s=30, recover_s=120)


def answer(client: EdgeClient, prompt: str, request: CompletionRequest) -> Completion:
    return client.complete([{"role": "user", "content": prompt}], request)


def moved(
    client: EdgeClient, link: EmulatedLink, prompt: str, request: CompletionRequest, seed: int
) -> Completion:
    """The answer with moves at random tokens; with odd seeds connections drop as well."""
    rng = random.Random(seed)
    splits = (0, *client.plan.splits)
    run = client.start([{"role": "user", "content": prompt}], request)
    for _ in run:
        if rng.random() < 0.06:
            run.move_to(rng.choice(splits))
            if seed % 2 and rng.random() < 0.7:
                link.drop_connections()
        elif seed % 2 and rng.random() < 0.03:
            link.drop_connections()
    return run.completion


def random_moves(arguments: argparse.Namespace, address: str) -> list[dict[str, Any]]:
    target = parse_address(address)
    rows = []
    with (
        EmulatedLink(target=(target.host, target.port), shape=SHAPE) as link,
        EdgeClient(arguments.whole, address, retry_policy=PATIENT) as still,
        EdgeClient(
            arguments.segmented, f"127.0.0.1:{link.address[1]}", retry_policy=PATIENT
        ) as client,
    ):
        for seed in range(arguments.cases):
            sampling = SamplingParams(temperature=0.7, seed=seed) if seed % 4 > 1 else None
            request = CompletionRequest(
                max_new_tokens=arguments.tokens,
                sampling=sampling or SamplingParams(),
                draft="ngram" if seed % 3 else "off",
                ignore_eos=True,
                move_by=arguments.move_by,
            )
            prompt = PROMPTS[seed % len(PROMPTS)]
            expected = answer(still, prompt, request).token_ids
            done = moved(client, link, prompt, request, seed)
            rows.append(
                {
                    "case": seed,
                    "identical": done.token_ids == expected,
                    "tokens": len(done.token_ids),
                    "moves": done.moves,
                    "by_kv": sum(move["by"] == "kv" for move in done.to_json().get("moves", [])),
                    "reconnects": done.reconnects,
                    "sampled": sampling is not None,
                    "draft": request.draft,
                }
            )
            print(rows[-1], file=sys.stderr)
    return rows


def long_answer(arguments: argparse.Namespace, address: str) -> dict[str, Any]:
    request = CompletionRequest(
        max_new_tokens=arguments.long,
        context="handover",
        draft="off",
        ignore_eos=True,
        move_by=arguments.move_by,
    )
    times = {}
    with EdgeClient(arguments.segmented, address) as client:
        front = client._fronts.get()
        client._fronts.put(front)
        planned, most = front.kv_bytes, 0
        splits: dict[int, int] = {}  # the first token at each
        started_s = time.monotonic()
        run = client.start([{"role": "user", "content": PROMPTS[0]}], request)
        for index, _ in enumerate(run):
            most = max(most, front.kv_bytes)
            splits.setdefault(front.split, index)
        times["moving"] = time.monotonic() - started_s
        done = run.completion
        capacities = {split: client.plan.capacity(split) for split in client.plan.splits}
    with EdgeClient(arguments.whole, address) as still:
        started_s = time.monotonic()
        expected = answer(still, PROMPTS[0], request)
        times["still"] = time.monotonic() - started_s
    pairs = zip(done.token_ids, expected.token_ids, strict=False)
    return {
        "tokens": len(done.token_ids),
        "prompt_tokens": done.num_prompt_tokens,
        "identical": done.token_ids == expected.token_ids,
        "first_difference": next((i for i, (a, b) in enumerate(pairs) if a != b), None),
        "moves": done.moves,
        "split_from_token": splits,
        "capacities": capacities,
        "cache_bytes_planned": planned,
        "cache_bytes_most": most,
        "seconds": times,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--segmented", type=Path, required=True)
    parser.add_argument("--whole", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--long", type=int, default=4000)
    parser.add_argument("--move-by", choices=MOVE_WAYS, default="auto")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
    }
    with serving(arguments.whole, ["--kv-memory", "1GiB"]) as address:
        report["cases"] = random_moves(arguments, address)
        if arguments.long:
            report["long"] = long_answer(arguments, address)
    print(json.dumps(report))
    same = all(row["identical"] for row in report["cases"])
    return 0 if same and report.get("long", {}).get("identical", True) else 1


if __name__ == "__main__":
    sys.exit(main())
