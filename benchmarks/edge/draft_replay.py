"""Drafting over recorded answers, on a clock that only work moves: tokens a round trip, and speed.

    python -m benchmarks.edge.draft_replay --answers DIR/answers-128.jsonl [--rtt-ms 50]

This is a calculation: the product's own generation loop, session and look-up run over answers that
`benchmarks/edge/successor_drafts.py` has recorded, the real model's. A row of the device, a step of
the cloud and the link take what the options say. It has no noise, so it tells what a change of the
rules for drafts brings before anything is measured. Prints a table on stderr, one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edge.draft.ngram import NgramDrafter
from tests.edge.timed_cloud import RoundSetting, replayed


class Answer(NamedTuple):
    """One answer with drafts beside the same without."""

    num_tokens: int
    round_trips: int
    seconds: float
    plain_s: float


def of_answer(recorded: dict[str, Any], setting: RoundSetting) -> Answer:
    """Replay one. Raises AssertionError where drafting changed a token."""
    ids, num_prompt = recorded["ids"], recorded["num_prompt"]
    drafted = replayed(ids, num_prompt, NgramDrafter(), setting)
    plain = replayed(ids, num_prompt, None, setting)
    if not drafted.token_ids == plain.token_ids == ids[num_prompt:]:
        raise AssertionError(f"{recorded['id']}: other tokens with drafts")
    count = len(drafted.token_ids) - 1
    return Answer(count, drafted.round_trips, drafted.seconds, plain.seconds)


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Tokens a round trip of all, and the rate by that of plain decoding."""
    seconds = sum(answer.seconds for answer in answers)
    return {
        "answers": len(answers),
        "tokens_a_round_trip": sum(a.num_tokens for a in answers)
        / sum(a.round_trips for a in answers),
        "rate_by_plain": sum(a.plain_s for a in answers) / seconds,
        "median_rate_by_plain": statistics.median(a.plain_s / a.seconds for a in answers),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--rtt-ms", type=float, default=50.0)
    parser.add_argument("--mbps", type=float, default=20.0)
    parser.add_argument("--edge-row-ms", type=float, default=2.0)
    parser.add_argument("--cloud-step-ms", type=float, default=4.0)
    arguments = parser.parse_args()
    setting = RoundSetting(
        edge_row_s=arguments.edge_row_ms / 1e3,
        cloud_step_s=arguments.cloud_step_ms / 1e3,
        rtt_s=arguments.rtt_ms / 1e3,
        up_bytes_per_s=arguments.mbps * 1e6 / 8,
    )
    by_category: dict[str, list[Answer]] = defaultdict(list)
    for line in arguments.answers.read_text(encoding="utf-8").splitlines():
        recorded = json.loads(line)
        by_category[recorded["category"]].append(of_answer(recorded, setting))
    report = {name: figures(found) for name, found in sorted(by_category.items())}
    report["all"] = figures([answer for found in by_category.values() for answer in found])
    for name, found in report.items():
        print(
            f"{name:<18} {found['tokens_a_round_trip']:6.2f} {found['rate_by_plain']:6.2f}"
            f" {found['median_rate_by_plain']:6.2f}",
            file=sys.stderr,
        )
    print(json.dumps({"command": " ".join(["python", *sys.argv]), "found": report}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
