"""Decoding through a bundle on this machine alone: server in a process of its own, on loopback."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from edge.generation.report import breakdown
from hwprofiles.providers.table import AUTO
from optimizer.artifacts.codec_tables import DEFAULT_TABLES
from splitpoint.server_process import serving

PROMPT = "Explain in a few sentences how a heat pump warms a house in winter."


def run_decode_bench(
    bundle: Path,
    *,
    tokens: int,
    repeats: int,
    draft: str,
    provider: str = AUTO,
    tables: str = DEFAULT_TABLES,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Tokens a second, time to the first one, and where a step's time goes.

    Both sides share this machine's processors, so each is slower than on a machine of its own.
    Medians over `repeats` greedy answers after one to warm up; parts are means within an answer.
    provider: what runs the front. tables: the codec tables, see EdgeClient. progress is told (what
    comes next, answers done, answers in all).
    """
    request = CompletionRequest(max_new_tokens=tokens, draft=draft, ignore_eos=True)
    progress("starting a server", 0, repeats + 1)
    with (
        serving(bundle) as address,
        EdgeClient(bundle, address, provider=provider, tables=tables) as client,
    ):
        front = client.front_report.to_json()
        progress("warming up", 0, repeats + 1)
        client.complete(PROMPT, request)
        answers = []
        for done in range(repeats):
            progress(f"answer {done + 1} of {repeats}", done + 1, repeats + 1)
            answers.append(client.complete(PROMPT, request))
    parts = [breakdown(answer.steps, "decode") for answer in answers]
    rates = [answer.tokens_per_s for answer in answers]
    return {
        "bundle": str(bundle),
        "tokens": len(answers[0].token_ids),
        "repeats": repeats,
        "draft": draft,
        "tables": answers[0].tables,
        "front": front,
        "measured": True,
        "tokens_per_s": statistics.median(rates),
        "tokens_per_s_min": min(rates),
        "tokens_per_s_max": max(rates),
        "ttft_s": statistics.median(answer.ttft_s for answer in answers),
        "step_s": {
            name.replace(" ", "_"): statistics.median(part[name] for part in parts)
            for name in parts[0]
        },
    }
