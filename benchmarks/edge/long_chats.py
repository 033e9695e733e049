"""Long conversations in a cache of fixed size: what each KV policy still knows, and reads well.

    python benchmarks/edge/long_chats.py [--model DIR] [--tokens 6000] [--chats 8]
        [--budgets 512,1024,2048] [--policies full,shift,recent,entropy]
        [--decay 1.0] [--recent-share 4] [--room-share 8]

A conversation is made of questions and worked answers of GSM8K. In an early turn the user says a
number, and the last turn asks for it. One whole model in float32 reads it with a cache in which the
policy's own code says which tokens stay; the tests of `tests/end_to_end/test_tokens_that_leave.py`
show that a split gives the same. Token surprises are rounded as on the wire.

- found: conversations whose answer has the number.
- perplexity: of the tokens in the last quarter, the number's turn left out.
- peak_tokens: the most that were cached at once. reread: tokens that were prefilled again.

JSON last.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.edge.facts import machine
from optimizer.export.sources.model_source import open_source
from optimizer.policy.kv.base import KvPolicy
from optimizer.policy.kv.entropy import Entropy
from optimizer.policy.kv.recent import Recent
from optimizer.policy.kv.refuse import Refuse
from optimizer.policy.kv.registry import kv_policy
from protos.entropy_bytes import entropies, entropy_bytes

CHUNK = 64
ANSWER_TOKENS = 24
UNBOUNDED = 1 << 30


@dataclass
class BoundedCache:
    """A model that reads a sequence with at most `budget` cached tokens."""

    model: Any
    policy: KvPolicy
    budget: int
    ids: list[int] = field(default_factory=list)  # of the cached tokens
    scores: list[float] = field(default_factory=list)
    next_position: int = 0
    peak_tokens: int = 0
    reread: int = 0
    logprobs: list[float] = field(default_factory=list)  # of every token read but the first
    cache: Any = field(default_factory=DynamicCache)
    last_row: Any = None

    def read(self, token_ids: Sequence[int]) -> None:
        """Append tokens, in chunks that end where the cache is full."""
        at = 0
        while at < len(token_ids):
            if len(self.ids) >= self.budget:
                self._make_room()
            count = min(CHUNK, self.budget - len(self.ids), len(token_ids) - at)
            self._run(token_ids[at : at + count])
            at += count

    def _run(self, token_ids: Sequence[int]) -> None:
        logits = self._forward(token_ids)
        rows = logits[:-1] if self.last_row is None else torch.cat([self.last_row[None], logits])
        judged = token_ids[1:] if self.last_row is None else token_ids
        log = torch.log_softmax(rows[: len(judged)].double(), dim=-1)
        said = [float(log[index, token]) for index, token in enumerate(judged)]
        self.logprobs += said
        first = [0.0] * (len(token_ids) - len(judged))
        self.scores += [*first, *entropies(entropy_bytes(said))]
        self.last_row = logits[-1]

    def _forward(self, token_ids: Sequence[int]) -> Any:
        past, count = len(self.ids), len(token_ids)
        mask = torch.zeros(count, past + count)
        mask[:, past:] = torch.triu(torch.full((count, count), torch.finfo(mask.dtype).min), 1)
        positions = torch.arange(self.next_position, self.next_position + count)[None]
        with torch.inference_mode():
            out = self.model(
                torch.tensor([list(token_ids)]),
                attention_mask=mask[None, None],
                position_ids=positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.ids += token_ids
        self.next_position += count
        self.peak_tokens = max(self.peak_tokens, len(self.ids))
        return out.logits[0]

    def _make_room(self) -> None:
        scores = self.scores if self.policy.needs_scores else ()
        kept = list(self.policy.kept(len(self.ids), self.budget, scores))
        stay = [self.ids[place] for place in kept]
        self.scores = [self.scores[place] * self.policy.decay for place in kept]
        if self.policy.in_place:
            for layer in self.cache.layers:
                layer.keys = layer.keys[:, :, kept].contiguous()
                layer.values = layer.values[:, :, kept].contiguous()
            self.ids = stay
            return
        self.cache, self.ids, self.next_position = DynamicCache(), [], 0
        self.reread += len(stay)
        for at in range(0, len(stay), CHUNK):
            self.last_row = self._forward(stay[at : at + CHUNK])[-1]

    def answer(self, count: int) -> list[int]:
        """What it says next, greedily."""
        tokens: list[int] = []
        for _ in range(count):
            tokens.append(int(self.last_row.argmax()))
            self.read([tokens[-1]])
        return tokens


@dataclass(frozen=True)
class Chat:
    """Token ids up to where the last quarter begins, from there to the question, the question, and
    the number that answers it."""

    before: list[int]
    later: list[int]
    question: list[int]
    number: str


def make_chat(tokenizer: Any, pairs: Sequence[dict[str, str]], num_tokens: int, seed: int) -> Chat:
    rng = random.Random(seed)
    number = str(rng.randint(1000, 9999))
    turns = [
        ("user", f"Please remember: the code of my locker is {number}. I will ask for it later."),
        ("assistant", f"I will remember it: the code of your locker is {number}."),
    ]
    ids: list[int] = []
    order = rng.sample(pairs, len(pairs))
    needle_at = max(1, num_tokens // 2000)  # a turn or two come before it
    for index, pair in enumerate(order):
        if index == needle_at:
            for role, text in turns:
                ids += tokenizer.encode(f"<|im_start|>{role}\n{text}<|im_end|>\n")
        answer = pair["answer"].split("####")[0].strip()
        text = f"<|im_start|>user\n{pair['question']}<|im_end|>\n"
        ids += tokenizer.encode(f"{text}<|im_start|>assistant\n{answer}<|im_end|>\n")
        if len(ids) >= num_tokens and index > needle_at:
            break
    ids, cut = ids[:num_tokens], num_tokens * 3 // 4
    question = (
        "\n<|im_start|>user\nWhat is the code of my locker?<|im_end|>\n<|im_start|>assistant\n"
    )
    return Chat(ids[:cut], ids[cut:], tokenizer.encode(question), number)


def measured(
    model: Any, tokenizer: Any, chats: Sequence[Chat], policy: KvPolicy, budget: int
) -> Any:
    """One policy at one budget over all conversations."""
    found, nats, count, peak, reread, began = 0, 0.0, 0, 0, 0, time.perf_counter()
    for chat in chats:
        reader = BoundedCache(model, policy, budget)
        reader.read(chat.before)
        first = len(reader.logprobs)
        reader.read(chat.later)
        later = reader.logprobs[first:]
        nats, count = nats - sum(later), count + len(later)
        reader.read(chat.question)
        found += chat.number in tokenizer.decode(reader.answer(ANSWER_TOKENS))
        peak, reread = max(peak, reader.peak_tokens), reread + reader.reread
    return {
        "policy": "full" if budget == UNBOUNDED else policy.name,
        "budget": None if budget == UNBOUNDED else budget,
        "found": found,
        "chats": len(chats),
        "perplexity": round(math.exp(nats / count), 4),
        "peak_tokens": peak,
        "reread": reread // len(chats),
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k/gsm8k_test.jsonl"))
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--budgets", default="512,1024,2048")
    parser.add_argument("--policies", default="full,shift,recent,entropy")
    parser.add_argument("--decay", type=float, default=1.0, help="eta of entropy")
    parser.add_argument("--recent-share", type=int, default=4, help="of entropy: 1/N is newest")
    parser.add_argument("--room-share", type=int, default=8, help="1/N gets free in a round")
    arguments = parser.parse_args()
    source = open_source(arguments.model)
    model, tokenizer = source.load_model().eval(), source.load_tokenizer()
    pairs = [json.loads(line) for line in arguments.data.read_text("utf-8").splitlines()]
    chats = [make_chat(tokenizer, pairs, arguments.tokens, seed) for seed in range(arguments.chats)]
    rows = []
    for name in arguments.policies.split(","):
        policy: KvPolicy = Refuse() if name == "full" else kv_policy(name)
        if isinstance(policy, Recent):
            policy = replace(policy, room_share=arguments.room_share)
        if isinstance(policy, Entropy):
            policy = replace(
                policy,
                decay=arguments.decay,
                recent_share=arguments.recent_share,
                room_share=arguments.room_share,
            )
        budgets = [UNBOUNDED] if name == "full" else map(int, arguments.budgets.split(","))
        for budget in budgets:
            rows.append(measured(model, tokenizer, chats, policy, budget))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"machine": machine(), "tokens": arguments.tokens, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
