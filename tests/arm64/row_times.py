"""Prints the seconds of encoding one row of 576 values with the kernel and in numpy, as JSON."""

from __future__ import annotations

import json
import sys

from codec import slow_path
from codec.bench import synthetic_ladder
from codec.entropy import rans, trellis
from codec.kernel.library import is_compiled


def main() -> None:
    """The least of three of each."""
    if not is_compiled():
        sys.exit("the codec's compiled kernel is not there")
    ladder = synthetic_ladder(576)
    found = {}
    for name, compiled in (("kernel_s", True), ("numpy_s", False)):
        for module in (rans, trellis):
            module.is_compiled = lambda compiled=compiled: compiled  # type: ignore[attr-defined]
        found[name] = min(slow_path.row_seconds(ladder, "calibrated")[0] for _ in range(3))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
