"""Tables of several splits from one calibration, as `splitpoint build` makes them for its one.

    python benchmarks/codec/make_tables.py --model MODEL --splits 5,10,15,20 --out DIR \
        [--text F] [--tokens 8192]

Writes DIR/split-N.tables. Without --text the model writes its own. JSON last: seconds by stage.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from optimizer.export.calibration.calibrate import calibrate_splits
from optimizer.export.calibration.text import OwnTextHints, own_text_hints
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--splits", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    options = parser.parse_args()
    source = open_source(options.model)
    options.out.mkdir(parents=True, exist_ok=True)
    model = LayeredModel(source, folder=options.out)
    ids = None
    if options.text is not None:
        # No tokenizer makes less than a token of 16 bytes of usual text; the rest is not needed.
        text = options.text.read_text(encoding="utf-8")[: 16 * options.tokens]
        ids = list(source.load_tokenizer()(text)["input_ids"])
    seconds: dict[str, float] = {}
    cpu_s: dict[str, float] = {}
    begun_cpu_s = time.process_time()
    begun_s, running = time.perf_counter(), "start"

    def note(stage: str, done: int, total: int) -> None:
        nonlocal begun_s, begun_cpu_s, running
        cpu_s[running] = cpu_s.get(running, 0.0) + time.process_time() - begun_cpu_s
        begun_cpu_s = time.process_time()
        now_s = time.perf_counter()
        seconds[running] = seconds.get(running, 0.0) + now_s - begun_s
        if stage != running:
            print(stage, file=sys.stderr, flush=True)
        begun_s, running = now_s, stage

    digests = calibrate_splits(
        model,
        {int(split): options.out / f"split-{split}.tables" for split in options.splits.split(",")},
        token_ids=ids,
        num_tokens=options.tokens,
        own=own_text_hints(source.load_tokenizer()) if ids is None else OwnTextHints(),
        progress=note,
    )
    note("end", 1, 1)
    print(json.dumps({"sha256": digests, "seconds": seconds, "cpu_s": cpu_s}))


if __name__ == "__main__":
    main()
