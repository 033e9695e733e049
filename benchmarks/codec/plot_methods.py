"""One picture of rate_quality.py's results: every split a panel, every method a mark.

    python benchmarks/codec/plot_methods.py --out docs/images/codec.png RESULTS.json [RESULTS.json
    ...]

Certificates of `splitpoint certify --json` are taken as well. Files are merged by split and name;
of two results the later file's counts. KL over bits an element in one-row frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Method as its name begins, what the legend calls it, colour, mark.
METHODS = (
    ("q", "calibrated (ours)", "#1b5fb4", "o"),
    ("tabq", "TAB-Q with rANS", "#d1495b", "s"),
    ("top", "top-k + integers", "#8a5a00", "v"),
    ("rotated", "random rotation, integers", "#6a3d9a", "D"),
    ("row", "integers a row", "#2a8c6e", "^"),
    ("fourier", "Fourier", "#777777", "X"),
    ("blockwise", "int8 a block", "#e08a00", "<"),
    ("q8_0", "Q8_0", "#00838f", ">"),
    ("fp16", "fp16", "#111111", "*"),
)
_LEAST = 2e-6  # what is closer to the untouched model is drawn here
_BITS = (1, 2, 3, 4, 6, 8, 12, 16)


def method_of(name: str) -> str:
    """Which of METHODS a result of this name belongs to; "" for lossless."""
    lowered = name.lower()
    for word in ("rotated", "row", "fourier", "blockwise", "q8_0", "fp16", "top", "tabq"):
        if word in lowered:
            return word
    return "q" if name[0] == "q" else ""


def draw(axes: Axes, results: dict[str, dict[str, Any]], title: str) -> None:
    """Marks of one split; settings of one method are joined."""
    for key, label, colour, mark in METHODS:
        found = sorted(
            (level["bits_per_element"], max(level["kl"], _LEAST))
            for name, level in results.items()
            if method_of(name) == key
        )
        if not found:
            continue
        ours = key in ("q", "tabq")
        axes.plot(
            [bits for bits, _ in found],
            [kl for _, kl in found],
            color=colour,
            marker=mark,
            ms=6 if ours else 5,
            lw=1.8 if ours else 0.9,
            ls="-" if ours else "" if key == "top" else ":",
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(0.9, 19)
    axes.set_xticks(_BITS, [str(bits) for bits in _BITS], minor=False)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    splits: dict[int, dict[str, dict[str, Any]]] = {}
    for path in options.results:
        found = json.loads(path.read_text(encoding="utf-8"))
        if "levels" in found:  # a certificate
            found = {"splits": {found["split"]: found["levels"]}}
        for split, levels in found["splits"].items():
            splits.setdefault(int(split), {}).update({level["name"]: level for level in levels})
    columns = min(2, len(splits))
    rows = -(-len(splits) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.0 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (split, results) in zip(grid.flat, sorted(splits.items()), strict=False):
        draw(axes, results, f"split {split}")
    for axes in grid[:, 0]:
        axes.set_ylabel("KL, nats a token")
    for axes in grid[-1]:
        axes.set_xlabel("bits an element, one-row frames")
    handles = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(options.out, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
