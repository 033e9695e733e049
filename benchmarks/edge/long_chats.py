"""Long conversations in a cache of fixed size: what each KV policy still knows, and reads well.

    python -m benchmarks.edge.long_chats [--model DIR] [--tokens 6000] [--chats 4] [--first-chat 0]
        [--budgets 512,1024,2048] [--policies full,shift,recent,entropy,episodic-layer]
        [--results FILE] [--seconds S] [--table]

A conversation is made of questions and worked answers of GSM8K. At each sixth of the way the user
says a number, and at the end each number is asked for. One whole model in float32 reads it with a
cache in which the policy's own code says which tokens stay; the tests of
`tests/end_to_end/test_tokens_that_leave.py` show that a split gives the same. Token surprises are
rounded as on the wire. `episodic-head`, `episodic-layer` and `episodic-model` are EpiCache's
eviction (`benchmarks.edge.episodic_cache`), with a set of kept tokens for each head, each layer, or
the whole model; the product does not have them. `entropy/2` and the like: 1/2 of what stays is the
newest.

- budget: the most tokens that are cached at once.
- found: numbers whose digits are the likeliest ones behind "The code of your locker is". nats: what
  the digits of the right number cost, a number.
- perplexity: of the tokens in the last quarter.
- peak_tokens: the most that were cached at once. reread: tokens that were computed again.

Rows that FILE has already are not measured again. --table prints its rows by policy and budget.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.edge.bounded_cache import UNBOUNDED, BoundedCache
from benchmarks.edge.chat_texts import Chat, make_chat
from benchmarks.edge.episodic_cache import WAYS, EpisodicCache
from benchmarks.edge.facts import machine
from optimizer.export.sources.model_source import open_source
from optimizer.policy.kv.base import KvPolicy
from optimizer.policy.kv.entropy import Entropy
from optimizer.policy.kv.refuse import Refuse
from optimizer.policy.kv.registry import kv_policy

EPISODIC = {f"episodic-{way}": way for way in WAYS}


def reader(label: str, budget: int, model: Any, tokenizer: Any) -> BoundedCache:
    """A cache that nothing was read into."""
    name, _, share = label.partition("/")
    if name in EPISODIC:
        cache = EpisodicCache(model, Refuse(), budget, by=EPISODIC[name], tokenizer=tokenizer)
        return replace(cache, recent_share=int(share)) if share else cache
    policy: KvPolicy = Refuse() if name == "full" else kv_policy(name)
    if share and isinstance(policy, Entropy):
        policy = replace(policy, recent_share=int(share))
    elif share:
        raise SystemExit(f"{label}: {name} has no share of newest tokens")
    return BoundedCache(model, policy, budget)


def measured(cache: BoundedCache, tokenizer: Any, chat: Chat) -> dict[str, Any]:
    """One conversation, of which `cache` has read a beginning."""
    began = time.process_time()
    cache.read(chat.before[len(cache.history) :])
    cache.judges = True
    cache.read(chat.later)
    later = cache.logprobs
    found, nats, peak = [], [], cache.peak_tokens
    for fact in chat.facts:
        asked, number = cache.copied(), tokenizer.encode(fact.number)
        asked.read([*fact.question, *fact.stem, *number])
        nats.append(round(-sum(asked.logprobs[-len(number) :]), 3))
        found.append(all(asked.likeliest[-len(number) :]))
        peak = max(peak, asked.peak_tokens)
    return {
        "found": found,
        "nats": nats,
        "later_nats": -sum(later),
        "later_tokens": len(later),
        "peak_tokens": peak,
        "reread": cache.reread,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A line of Markdown for each policy and budget; the full cache's rows have to be there."""
    groups = defaultdict(list)
    full = {row["chat"]: row["later_nats"] for row in rows if row["policy"] == "full"}
    for row in sorted(rows, key=lambda row: (row["budget"] or math.inf, row["policy"])):
        groups[row["policy"], row["budget"]].append(row)
    lines = [
        "| budget | policy | chats | found | of each number, oldest first | nats | perplexity "
        "| over the full cache's | peak_tokens | reread | CPU s |",
        "| ---: | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (policy, budget), group in groups.items():
        found = [sum(hits) for hits in zip(*(row["found"] for row in group), strict=True)]
        nats = [value for row in group for value in row["nats"]]
        tokens = sum(row["later_tokens"] for row in group)
        read = sum(row["later_nats"] for row in group)
        more = math.expm1((read - sum(full[row["chat"]] for row in group)) / tokens)
        peak = max(row["peak_tokens"] for row in group)
        reread, seconds = (sum(row[key] for row in group) for key in ("reread", "cpu_seconds"))
        lines.append(
            f"| {budget or ''} | {policy} | {len(group)} | {sum(found)} of {len(nats)} "
            f"| {', '.join(map(str, found))} | {sum(nats) / len(nats):.1f} "
            f"| {math.exp(read / tokens):.3f} | {100 * more:+.1f} % | {peak:,} "
            f"| {reread // len(group):,} | {seconds / len(group):.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/gsm8k_test.jsonl"))
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--chats", type=int, default=4)
    parser.add_argument("--first-chat", type=int, default=0)
    parser.add_argument("--budgets", default="512,1024,2048")
    parser.add_argument("--policies", default="full,shift,recent,entropy,episodic-layer")
    parser.add_argument("--results", type=Path, default=Path("long_chats.jsonl"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row later")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    done = read_rows(arguments.results)
    if arguments.table:
        print(table(done))
        return 0
    source = open_source(arguments.model)
    model, tokenizer = source.load_model().eval(), source.load_tokenizer()
    pairs = [json.loads(line) for line in arguments.data.read_text("utf-8").splitlines()]
    budgets = [int(text) for text in arguments.budgets.split(",")]
    names = arguments.policies.split(",")
    wanted = [(name, UNBOUNDED) for name in names if name == "full"]
    wanted += [(name, budget) for budget in budgets for name in names if name != "full"]
    known = {(row["chat"], row["policy"], row["budget"]) for row in done}
    began = time.monotonic()
    for seed in range(arguments.first_chat, arguments.first_chat + arguments.chats):
        chat = make_chat(tokenizer, pairs, arguments.tokens, seed)
        beginning: BoundedCache | None = None
        for name, budget in wanted:
            shown = None if budget == UNBOUNDED else budget
            if (seed, name, shown) in known or time.monotonic() - began > arguments.seconds:
                continue
            if beginning is None:
                beginning = read_beginning(model, chat, max(budgets))
            cache = reader(name, budget, model, tokenizer)
            cache.begin_as(beginning)
            row = {"chat": seed, "policy": name, "budget": shown, "tokens": arguments.tokens}
            row |= measured(cache, tokenizer, chat)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"machine": machine()}) + "\n")
            print(json.dumps(row), file=sys.stderr, flush=True)
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def read_beginning(model: Any, chat: Chat, num_tokens: int) -> BoundedCache:
    """What every policy with a budget of at least `num_tokens` has in its cache at first."""
    cache = BoundedCache(model, kv_policy("entropy"), UNBOUNDED)
    cache.read(chat.before[:num_tokens])
    return cache


if __name__ == "__main__":
    sys.exit(main())
