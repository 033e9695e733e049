"""Drafting against plain decoding on Spec-Bench prompts: tokens a round trip, speed, identity.

    python benchmarks/edge/drafting.py BUNDLE --data spec_bench.jsonl [--drafts off ngram auto]
        [--rtt-ms 50 --mbps 20] [--prompts-per-task 8] [--tokens 128] [--parallel 1]
        [--work DIR] [--most N] [--temperature 0]

Serves the bundle in a process of its own behind an emulated link, asks every prompt with every
drafter, and compares the tokens with those of `off`. With --parallel 1 the times are good for
ratios: each prompt runs with all drafters in turn, another one first each time, so that the
machine's mood is the same. With more, many prompts run at once and only tokens and counts are.
Finished answers are kept in --work, one JSON line each, and not asked again: with --most N, call it
again for the next N prompts. Prints a table on stderr, one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from splitpoint.server_process import serving

MT_BENCH = (
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
)
COPYING = ("summarization", "rag", "extraction")  # answers that repeat their prompt
MIN_TASK_ENTRIES = 20
CHUNK = 128  # fixed, since kernels of other shapes give other values in the last digits
MIN_SPAN_TOKENS = 16  # shorter answers say nothing of tokens a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One question: the first turn of a Spec-Bench entry, through the chat template."""

    id: str
    category: str
    ids: tuple[int, ...]


def main() -> int:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    setting = f"{arguments.rtt_ms:g}ms-{arguments.mbps:g}mbps-t{arguments.temperature:g}"
    setting += f"-{arguments.level}-x{arguments.parallel}"
    path = arguments.work / f"answers-{setting}.jsonl"
    answers = _read(path)
    with (
        serving(arguments.bundle, ["--max-sessions", "16"]) as address,
        _link(address, arguments.rtt_ms / 1e3, arguments.mbps * 125e3) as far,
        EdgeClient(
            arguments.bundle, far, concurrency=arguments.parallel, threads=1, prefill_chunk=CHUNK
        ) as client,
        path.open("a") as log,
        ThreadPoolExecutor(arguments.parallel) as pool,
    ):
        room = client.plan.max_tokens - arguments.tokens
        prompts = choose(arguments.data, client, arguments.prompts_per_task, room)
        client.start_ids(prompts[0].ids[:64], CompletionRequest(max_new_tokens=4, draft="off"))

        order = {prompt.id: index % len(arguments.drafts) for index, prompt in enumerate(prompts)}

        def ask(prompt: Prompt) -> list[dict[str, Any]]:
            first = order[prompt.id]
            return [
                run_one(client, prompt, draft, arguments)
                for draft in (*arguments.drafts[first:], *arguments.drafts[:first])
                if (prompt.id, draft) not in answers
            ]

        todo = [
            p for p in prompts if any((p.id, draft) not in answers for draft in arguments.drafts)
        ]
        todo = todo[: arguments.most]
        for done, rows in enumerate(pool.map(ask, todo), start=1):
            for row in rows:
                answers[row["id"], row["draft"]] = row
                log.write(json.dumps(row) + "\n")
                log.flush()
            print(f"\r{done}/{len(todo)} prompts", end="", file=sys.stderr)
    print(file=sys.stderr)
    report = summarize(answers, prompts, arguments.drafts)
    _print_table(report)
    print(json.dumps({"command": " ".join(["python", *sys.argv]), "setting": setting, **report}))
    return 0


def choose(path: Path, client: EdgeClient, count: int, room: int) -> list[Prompt]:
    """`count` prompts of each of Spec-Bench's six tasks, of those that fit into `room` tokens.

    Evenly spread over a task's entries. The eight small categories (five entries each) are one
    task, MT-bench, and take turns within it.
    """
    by_task: dict[str, list[Prompt]] = defaultdict(list)
    sizes: Counter[str] = Counter()
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    sizes.update(entry["category"] for entry in entries)
    for entry in entries:
        ids = client.tokenizer.encode_chat([{"role": "user", "content": entry["turns"][0]}])
        if len(ids) <= room:
            category = entry["category"]
            task = category if sizes[category] >= MIN_TASK_ENTRIES else "mt-bench"
            by_task[task].append(Prompt(id=entry["id"], category=category, ids=tuple(ids)))
    by_task["mt-bench"] = _in_turns(by_task["mt-bench"])
    return [
        prompts[index * len(prompts) // min(count, len(prompts))]
        if task != "mt-bench"
        else prompts[index]
        for task, prompts in by_task.items()
        for index in range(min(count, len(prompts)))
    ]


def _in_turns(prompts: Sequence[Prompt]) -> list[Prompt]:
    """One of each category, then the second of each, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for order, prompt in enumerate(prompts):
        turns.append((seen[prompt.category], order, prompt))
        seen[prompt.category] += 1
    return [prompt for *_, prompt in sorted(turns, key=lambda turn: turn[:2])]


def run_one(
    client: EdgeClient, prompt: Prompt, draft: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """One answer with one drafter, as the row that is kept."""
    request = CompletionRequest(
        max_new_tokens=arguments.tokens,
        sampling=SamplingParams(temperature=arguments.temperature, seed=7),
        level=arguments.level,
        draft=draft,
    )
    run = client.start_ids(prompt.ids, request)
    for _ in run:
        pass
    figures = run.completion.to_json()
    kept = ("tokens", "round_trips", "tokens_per_s", "uplink_bytes", "drafts", "finish_reason")
    return {
        "id": prompt.id,
        "category": prompt.category,
        "draft": draft,
        "prompt_tokens": len(prompt.ids),
        **{key: figures[key] for key in kept},
        "frames": [
            [
                *(step.num_rows, step.num_new_tokens, int(step.ahead), step.front_s),
                *(step.encode_s, step.round_trip_s, step.wire_s, step.cloud_s),
                step.expected_tokens,
            ]
            for step in run.completion.steps
            if step.phase == "decode"
        ],
    }


def summarize(
    answers: dict[tuple[str, str], dict[str, Any]], prompts: Sequence[Prompt], drafts: Sequence[str]
) -> dict[str, Any]:
    """Figures by drafter and category. tokens_per_round_trip = all tokens / all round trips, the
    prefill's included; speedup: median over prompts of tokens/s by tokens/s of `off`;
    speedup_total: the time of all answers by `off`, by the time of all."""
    categories = {prompt.category: 0 for prompt in prompts}
    groups = {"all": tuple(categories), "copying": COPYING, "mt-bench": MT_BENCH}
    groups.update({category: (category,) for category in categories})
    report: dict[str, Any] = {"num_prompts": len(prompts), "drafters": {}}
    for draft in drafts:
        rows = [row for p in prompts if (row := answers.get((p.id, draft))) is not None]
        report["drafters"][draft] = {
            name: _figures([row for row in rows if row["category"] in members], answers)
            for name, members in groups.items()
            if any(row["category"] in members for row in rows)
        }
    return report


def _figures(
    rows: Sequence[dict[str, Any]], answers: dict[tuple[str, str], dict[str, Any]]
) -> dict[str, Any]:
    plain = [answers.get((row["id"], "off")) for row in rows]
    num_tokens = sum(len(row["tokens"]) for row in rows)
    frames = [frame for row in rows for frame in row["frames"] if frame[1]]
    pairs = [
        (row["tokens_per_s"], off["tokens_per_s"], len(row["tokens"]) - 1)
        for row, off in zip(rows, plain, strict=True)
        if off is not None and len(row["tokens"]) >= MIN_SPAN_TOKENS
    ]
    ratios = [rate / plain_rate for rate, plain_rate, _ in pairs]
    span_s = sum(count / rate for rate, _, count in pairs)
    plain_s = sum(count / plain_rate for _, plain_rate, count in pairs)
    measured = sum(frame[1] for frame in frames)
    return {
        "prompts": len(rows),
        "tokens": num_tokens,
        "tokens_per_round_trip": num_tokens / sum(row["round_trips"] for row in rows),
        "tokens_per_frame": measured / len(frames) if frames else 0.0,
        "expected_over_measured": sum(frame[8] for frame in frames) / measured if measured else 0.0,
        "accepted_share": _share(rows),
        "tokens_per_s": statistics.median(row["tokens_per_s"] for row in rows),
        "speedup": statistics.median(ratios) if ratios else None,
        "speedup_total": plain_s / span_s if ratios else None,
        "void_frames_a_token": sum(row["drafts"]["frames_void"] for row in rows) / num_tokens,
        "uplink_bytes_a_token": sum(row["uplink_bytes"] for row in rows) / num_tokens,
        "identical": sum(
            off is not None and row["tokens"] == off["tokens"]
            for row, off in zip(rows, plain, strict=True)
        ),
        "different": [
            row["id"]
            for row, off in zip(rows, plain, strict=True)
            if off is not None and row["tokens"] != off["tokens"]
        ],
    }


def _share(rows: Sequence[dict[str, Any]]) -> float:
    sent = sum(row["drafts"]["sent"] for row in rows)
    return float(sum(row["drafts"]["accepted"] for row in rows) / sent) if sent else 0.0


def _print_table(report: dict[str, Any]) -> None:
    print(f"{'':30} tokens/trip  tokens/s  speedup (total)  expected  identical", file=sys.stderr)
    for draft, groups in report["drafters"].items():
        for name, row in groups.items():
            speedup, total = (
                "" if row[key] is None else f"{row[key]:.2f}"
                for key in ("speedup", "speedup_total")
            )
            print(
                f"{draft:>8} {name:<20} {row['tokens_per_round_trip']:12.2f} "
                f"{row['tokens_per_s']:9.1f} {speedup:>8} {total:>7} "
                f"{row['expected_over_measured']:9.2f} {row['identical']:6d}/{row['prompts']}",
                file=sys.stderr,
            )


def _read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines]
    return {(row["id"], row["draft"]): row for row in rows}


@contextmanager
def _link(address: str, rtt_s: float, bytes_per_s: float) -> Iterator[str]:
    """The address to connect to: across the emulated link, or the server's own for a zero RTT."""
    if rtt_s == 0:
        yield address
        return
    host, port = address.rsplit(":", 1)
    shape = LinkShape.fixed(rtt_s=rtt_s, up_bytes_per_s=bytes_per_s, down_bytes_per_s=bytes_per_s)
    with EmulatedLink(target=(host, int(port)), shape=shape) as link:
        yield f"{link.address[0]}:{link.address[1]}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--drafts", nargs="+", default=["off", "ngram", "auto"])
    parser.add_argument("--rtt-ms", type=float, default=50.0)
    parser.add_argument("--mbps", type=float, default=20.0)
    parser.add_argument("--prompts-per-task", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--level", default="auto")
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--most", type=int, help="Ask so many prompts only, in this run.")
    parser.add_argument("--work", type=Path, default=Path("build/drafting"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
