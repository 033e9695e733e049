"""Bits against quality of every level and every baseline at one split, on real hidden states.

    python benchmarks/codec/rate_quality.py --model MODEL --tables T --split 10 --text F \\
        [--tokens 16384] [--plot rate_quality.png]

Prints a table and, last, one JSON object. Metrics are those of `splitpoint certify`.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from baselines import ALL

from codec.ladder import Ladder
from optimizer.build.certify import Coder, LadderCoder, measure, text_windows
from optimizer.build.certify_plot import plot_levels
from optimizer.build.source import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--split", type=int, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()

    source = open_source(options.model)
    ladder = Ladder.load(options.tables, hidden_size=source.geometry.hidden_size)
    ids = source.load_tokenizer()(options.text.read_text(encoding="utf-8"))["input_ids"]
    names = ladder.names + ladder.extra_names
    coders: list[Coder] = [LadderCoder(ladder, name) for name in names]
    baseline, found = measure(
        source.load_model(),
        [*coders, *ALL],
        split=options.split,
        windows=text_windows(ids, window=options.window, max_tokens=options.tokens),
        progress=lambda done, total: print(f"window {done} of {total}", file=sys.stderr),
    )
    for level in found:
        print(
            f"{level.name:32} {level.bits_per_element:6.3f} {level.bits_per_element_prefill:6.3f} "
            f"{level.perplexity_rise_pct:+8.2f} % {level.kl:9.5f} {level.top1_agreement:.4f}"
        )
    if options.plot:
        groups = {
            "calibrated (ours)": tuple(q for q in found if q.name in ladder.names),
            "TAB-Q with rANS": tuple(q for q in found if q.name in ladder.extra_names),
            **{q.name: (q,) for q in found if q.name not in names},
        }
        plot_levels(groups, options.plot, title=f"split {options.split}")
    print(json.dumps({"baseline_perplexity": baseline, "levels": [asdict(q) for q in found]}))


if __name__ == "__main__":
    main()
