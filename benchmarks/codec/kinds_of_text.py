"""What each of a bundle's codec tables costs on several kinds of text: bits and loss at one level.

    python benchmarks/codec/kinds_of_text.py --model MODEL --bundle BUNDLE --level q3 \
        --text wikitext=wiki.valid.raw --text code=code.txt [--tokens 1024]

The texts must be none that the tables were fitted to. Rows are those of the float32 layers, as
`splitpoint certify` takes them. Bits hold on any machine. JSON last: by text and tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codec.ladder import Ladder
from optimizer.artifacts.bundle import open_bundle
from optimizer.export.certify.certificate import (
    Coder,
    LadderCoder,
    SessionLevelCoder,
    measure,
    text_windows,
)
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import open_source


class Renamed:
    """A level of some tables, under the tables' name."""

    def __init__(self, ladder: Ladder, level: str, name: str) -> None:
        self.name = name
        self._coder = LadderCoder(ladder, level)

    def send(self, rows: Any, token_ids: Any) -> tuple[Any, int]:
        """See Coder."""
        return self._coder.send(rows, token_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--level", default="q3")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--tokens", type=int, default=1024)
    options = parser.parse_args()
    source = open_source(options.model)
    opened = open_bundle(options.bundle, role="edge")
    split, width = opened.plan.partition.split, source.geometry.hidden_size
    ladders = {
        name: Ladder.load(paths[split], hidden_size=width)
        for name, paths in opened.codec_tables().items()
        if split in paths
    }
    model = LayeredModel(source, folder=None)
    tokenizer = source.load_tokenizer()
    found: dict[str, Any] = {}
    for given in options.text:
        kind, _, path = given.partition("=")
        # No tokenizer makes less than a token of 16 bytes of usual text; the rest is not needed.
        text = Path(path).read_text(encoding="utf-8")[: 16 * options.tokens]
        windows = text_windows(tokenizer(text)["input_ids"], window=512, max_tokens=options.tokens)
        found[kind] = {}
        coders: list[Coder] = []
        for name, ladder in ladders.items():
            coders.append(Renamed(ladder, options.level, name))
            if ladder.can_recall:
                coders.append(SessionLevelCoder(ladder, options.level, f"{name}, adapted"))
        baseline, qualities = measure(model, coders, split=split, windows=windows)
        for quality in qualities:
            found[kind][quality.name] = {**asdict(quality), "tokens": int(windows.size)}
        print(kind, baseline, found[kind], file=sys.stderr, flush=True)
    print(json.dumps({"split": split, "level": options.level, "found": found}))


if __name__ == "__main__":
    main()
