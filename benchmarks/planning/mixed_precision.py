"""Bits of each front layer by measured sensitivity, against others of the same bytes. JSON last.

    python benchmarks/planning/mixed_precision.py --model DIR --split N --text F [--fit-tokens 4096]
        [--tokens 8192] [--window 256]

Sensitivities are measured on the first `--fit-tokens` of the text, perplexities on the
`--tokens` behind them. For every number k of 8-bit layers (the byte budget): the optimizer's
choice, the first k layers, the last k, the median of five random choices, and the worst choice by
the same sensitivities. Uniform one-point precision has only the two ends: all 4, all 8.
"""

from __future__ import annotations

import argparse
import atexit
import json
import math
import random
import statistics
import sys
import tempfile
from pathlib import Path

from optimizer.cost.weights import front_layer_bytes
from optimizer.export.calibration.text import sampled_windows
from optimizer.export.certify.certificate import text_windows
from optimizer.export.certify.layer_sensitivity import (
    FrontVariants,
    measure_sensitivity,
    negative_log_likelihood,
)
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import ModelSource, open_source
from optimizer.search.layer_bits import choose_layer_bits

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--split", type=int, default=10)
    parser.add_argument(
        "--text", type=Path, default=Path("../shared/data/wikitext2/wiki.valid.raw")
    )
    parser.add_argument("--sampled", action="store_true", help="text that the model writes itself")
    parser.add_argument("--fit-tokens", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5, help="numbers of 8-bit layers to try")
    arguments = parser.parse_args()
    source = open_source(arguments.model)
    scratch = tempfile.TemporaryDirectory()
    model = LayeredModel(source, folder=Path(scratch.name))
    if arguments.sampled:
        count = (arguments.fit_tokens + arguments.tokens) // arguments.window
        drawn = sampled_windows(model.whole(), num_windows=count, window=arguments.window, seed=1)
        ids = drawn.reshape(-1).tolist()
    else:
        ids = ids_of(arguments, source)
    fit = text_windows(ids, window=arguments.window, max_tokens=arguments.fit_tokens)
    held_out = text_windows(ids[fit.size :], window=arguments.window, max_tokens=arguments.tokens)
    split: int = arguments.split
    found = measure_sensitivity(source, model, split=split, windows=fit, progress=tell)
    folder = tempfile.TemporaryDirectory(prefix="splitpoint-lab-")
    atexit.register(folder.cleanup)
    lab = FrontVariants(source, split, Path(folder.name))
    base = negative_log_likelihood(model, split, None, held_out)
    sizes = {bits: front_layer_bytes(source.geometry, bits) for bits in (4, 8)}

    def rise_pct(bits: tuple[int, ...]) -> float:
        loss = negative_log_likelihood(model, split, lab.rows(bits, held_out), held_out)
        return 100 * math.expm1(loss - base)

    rng = random.Random(0)
    rows = []
    for k in sorted({round(split * step / arguments.steps) for step in range(arguments.steps + 1)}):
        budget = k * sizes[8] + (split - k) * sizes[4]
        chosen = choose_layer_bits(found.losses, [sizes] * split, budget)
        if chosen is None:
            raise ValueError("the budget holds the front at 4 bits")
        gains = [loss[4] - loss[8] for loss in found.losses]
        least = sorted(range(split), key=lambda layer: gains[layer])[:k]
        others = {
            "first": tuple(8 if layer < k else 4 for layer in range(split)),
            "last": tuple(8 if layer >= split - k else 4 for layer in range(split)),
            "worst": tuple(8 if layer in least else 4 for layer in range(split)),
        }
        row = {
            "num_8_bit_layers": k,
            "bytes": budget,
            "bits": chosen,
            "predicted_pct": 100
            * math.expm1(sum(loss[b] for loss, b in zip(found.losses, chosen, strict=True))),
            "chosen_pct": rise_pct(chosen),
        }
        if 0 < k < split:
            row.update({f"{name}_pct": rise_pct(bits) for name, bits in others.items()})
            randoms = []
            for _ in range(5):
                wide = set(rng.sample(range(split), k))
                randoms.append(rise_pct(tuple(8 if i in wide else 4 for i in range(split))))
            row["random_median_pct"] = statistics.median(randoms)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    columns = ("predicted", "chosen", "first", "last", "random_median", "worst")
    print(f"| 8-bit layers of {split} | MiB | {' | '.join(columns)} |")
    print("| ---: | ---: |" + " ---: |" * len(columns))
    for row in rows:
        cells = [f"{row[f'{name}_pct']:+.2f} %" if f"{name}_pct" in row else "" for name in columns]
        size = row["bytes"] / MIB
        print(f"| {row['num_8_bit_layers']} | {size:.2f} | {' | '.join(cells)} |")
    print(
        json.dumps(
            {
                "benchmark": "mixed_precision",
                "model": source.id,
                "split": split,
                "fit_tokens": int(fit.size),
                "tokens": int(held_out.size),
                "baseline_perplexity": math.exp(base),
                "losses": [dict(loss) for loss in found.losses],
                "rows": rows,
            }
        )
    )


def ids_of(arguments: argparse.Namespace, source: ModelSource) -> list[int]:
    """Tokens of the text, as many as may be needed."""
    text = arguments.text.read_text(encoding="utf-8")[
        : 12 * (arguments.fit_tokens + arguments.tokens)
    ]
    return list(source.load_tokenizer()(text)["input_ids"])


def tell(done: int, total: int) -> None:
    print(f"layer {done} of {total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
