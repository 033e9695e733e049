"""Squeezed attention: keys read, step time, and perplexity of text behind a long context.

    python benchmarks/server/squeezed.py BUNDLE TEXT [--context 7680] [--tokens 384] [--texts 3]
                                         [--ratios 0.1,0.2,0.3,0.5] [--steps 40] [--json FILE]

BUNDLE holds all layers (`back_start: 0`). From each of `--texts` places of TEXT the first
`--context` tokens are a prompt, and the `--tokens` behind it are scored: once exactly, then with
each ratio. A step is one row behind the context; steps of all kinds take turns. Prints a table on
stderr and one JSON object last. Keys are those of the fixed context alone, of all layers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kv.pool import KvLease, KvPool
from cloud.squeezed.fixed_context import FixedContext, Indexing, Squeezing
from cloud.squeezed.index import SegmentIndex, SegmentRows, index_segment

CHUNK = 128


class RecordingSqueezing(Squeezing):
    """Keeps what indexes are made of, so that one prompt serves all ratios."""

    def __init__(self, engine: BackEngine) -> None:
        super().__init__(1.0, engine.squeezable_layers)
        self.rows: list[SegmentRows] = []

    def index(
        self, rows: SegmentRows, before: Sequence[Indexing], scales: Sequence[float]
    ) -> Indexing:
        self.rows.append(rows)
        done: Indexing = Future()
        done.set_result(None)
        return done


@dataclass(kw_only=True)
class Measured:
    """Of one way to attend, over all texts."""

    loss: float = 0.0
    num_scored: int = 0
    num_read: int = 0
    num_seen: int = 0
    steps_s: list[float] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.num_scored)


class Benchmark:
    """One engine and one lease, for one text after the other."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        cloud = arguments.bundle / "cloud"
        self.engine = BackEngine(load_back(cloud, first_layer=0))
        self.arguments = arguments
        self.context: int = arguments.context
        most = self.context + arguments.tokens
        limit = self.engine.kv_shape.num_bytes(split=0, max_tokens=most)
        self.lease: KvLease = KvPool(self.engine.kv_shape, limit_bytes=limit).lease(
            split=0, max_tokens=most
        )
        tokenizer = Tokenizer.from_file(str(cloud / "tokenizer.json"))
        text = arguments.text.read_text(encoding="utf-8")
        self.ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if len(self.ids) < arguments.texts * most:
            raise SystemExit(f"{arguments.text}: {len(self.ids)} tokens are too few")
        self.index_s: list[float] = []

    def run(self, ids: Sequence[int], *, num_logits: int, context: FixedContext | None) -> Tensor:
        """The next rows of the lease; logits of the last `num_logits`."""
        embedding = self.engine.model.embedding
        if embedding is None:
            raise SystemExit("the bundle holds no embedding: build it with back_start 0")
        rows = torch.from_numpy(embedding.rows(ids))
        entry = BatchEntry(lease=self.lease, rows=rows, num_logits=num_logits, context=context)
        return self.engine.forward([entry])[0]

    def prompt(self, ids: Sequence[int]) -> list[SegmentRows]:
        self.lease.rollback(0)
        recording = RecordingSqueezing(self.engine)
        context = recording.begin(split=0, shareable_tokens=self.context)
        for begin in range(0, self.context, CHUNK):
            self.run(ids[begin : min(begin + CHUNK, self.context)], num_logits=0, context=context)
        return recording.rows

    def squeezing(self, rows: Sequence[SegmentRows], ratio: float) -> FixedContext:
        """The prompt's fixed context, indexed for a ratio."""
        squeezing = Squeezing(ratio, self.engine.squeezable_layers)
        scales = [squeezing.scales[layer] for layer in sorted(squeezing.scales)]
        made: list[SegmentIndex] = []
        held: list[Indexing] = []
        for one in rows:
            begun_s = time.perf_counter()
            made.append(index_segment(one, made, scales, ratio))
            self.index_s.append(time.perf_counter() - begun_s)
            done: Indexing = Future()
            done.set_result(made[-1])
            held.append(done)
        context = squeezing.begin(split=0, shareable_tokens=self.context, held=held)
        if context is None:
            raise SystemExit("no layer of this model can select keys")
        return context

    def score(self, ids: Sequence[int], context: FixedContext | None, into: Measured) -> None:
        """The loss of the tokens behind the context."""
        self.lease.rollback(self.context)
        scored = ids[self.context :]
        for begin in range(0, len(scored) - 1, CHUNK):
            end = min(begin + CHUNK, len(scored) - 1)
            logits = self.run(scored[begin:end], num_logits=end - begin, context=context)
            targets = torch.tensor(scored[begin + 1 : end + 1])
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            into.loss += float(losses)
            into.num_scored += end - begin

    def time_steps(self, ways: Sequence[tuple[FixedContext | None, Measured]], ids: list[int]):
        for step in range(self.arguments.steps + 2):
            for context, into in ways:
                self.lease.rollback(self.context)
                begun_s = time.perf_counter()
                self.run(ids[self.context : self.context + 1], num_logits=1, context=context)
                if step > 1:
                    into.steps_s.append(time.perf_counter() - begun_s)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=7680)
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--ratios", default="0.1,0.2,0.3,0.5")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path, default=None, help="write the result there, too")
    arguments = parser.parse_args()
    benchmark = Benchmark(arguments)
    ratios = [float(text) for text in arguments.ratios.split(",")]
    exact = Measured()
    measured = {ratio: Measured() for ratio in ratios}
    stride = len(benchmark.ids) // arguments.texts
    prompt_s = 0.0
    for text in range(arguments.texts):
        ids = benchmark.ids[text * stride :][: arguments.context + arguments.tokens]
        begun_s = time.perf_counter()
        rows = benchmark.prompt(ids)
        prompt_s += time.perf_counter() - begun_s
        contexts = {ratio: benchmark.squeezing(rows, ratio) for ratio in ratios}
        benchmark.score(ids, None, exact)
        for ratio, context in contexts.items():
            benchmark.score(ids, context, measured[ratio])
            measured[ratio].num_read += context.squeezing.num_read
            measured[ratio].num_seen += context.squeezing.num_seen
        ways = [(context, measured[ratio]) for ratio, context in contexts.items()]
        benchmark.time_steps([(None, exact), *ways], ids)
        report(exact, measured)
    result = summary(exact, measured) | {
        "context": arguments.context,
        "texts": arguments.texts,
        "scored_tokens": exact.num_scored,
        "native": benchmark.engine.is_native,
        "threads": torch.get_num_threads(),
        "prompt_s": round(prompt_s / arguments.texts, 2),
        "index_ms_a_segment": round(1e3 * statistics.median(benchmark.index_s), 1),
    }
    print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def summary(exact: Measured, measured: dict[float, Measured]) -> dict[str, Any]:
    exact_ms = 1e3 * statistics.median(exact.steps_s)
    return {
        "exact": {"perplexity": round(exact.perplexity, 4), "step_ms": round(exact_ms, 2)},
        "ratios": {
            f"{ratio:g}": {
                "keys_fewer": round(one.num_seen / max(one.num_read, 1), 2),
                "perplexity": round(one.perplexity, 4),
                "loss_percent": round(100 * (one.perplexity / exact.perplexity - 1), 3),
                "step_ms": round(1e3 * statistics.median(one.steps_s), 2),
                "step_ratio": round(1e3 * statistics.median(one.steps_s) / exact_ms, 3),
            }
            for ratio, one in measured.items()
        },
    }


def report(exact: Measured, measured: dict[float, Measured]) -> None:
    found = summary(exact, measured)
    print(f"exact: {found['exact']}", file=sys.stderr, flush=True)
    for ratio, figures in found["ratios"].items():
        print(f"  {ratio}: {figures}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
