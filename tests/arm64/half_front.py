"""What a bundle's 16-bit front is computed in on this device, and what it takes: JSON on stdout.

python tests/arm64/half_front.py BUNDLE [wide]

`row_errors`: of each row of the text in the bundle, against the model's own in float32.
`private_bytes`: what loading the front and these rows added.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import psutil

from edge.device.front_loading import load_front
from edge.device.front_trial import tried_rows
from edge.device.half_front import WIDE, half_choice
from optimizer.artifacts.bundle import open_bundle
from optimizer.artifacts.half_front import half_rows_of

bundle = open_bundle(Path(sys.argv[1]), role="edge")
tried = half_rows_of(bundle)
if tried is None:
    raise SystemExit(f"{bundle.root} has no 16-bit graph")
choice = WIDE if "wide" in sys.argv else half_choice(bundle)
before = psutil.Process().memory_full_info().uss
loaded = load_front(
    bundle.root / "edge", plan=bundle.plan, provider="cpu", halves=choice, threads=1
)
rows = tried_rows(loaded.engines[0], tried.token_ids)[-len(tried.rows) :]
errors = np.linalg.norm(rows - tried.rows, axis=1) / np.linalg.norm(tried.rows, axis=1)
found = {
    **loaded.report.to_json(),
    "private_bytes": psutil.Process().memory_full_info().uss - before,
    "row_errors": [round(float(error), 6) for error in errors],
}
print(json.dumps(found))
