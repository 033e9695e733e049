"""Runs a front on OpenVINO, in a virtual environment of its own.

    make test-openvino
    python -m tests.openvino.other_environment [--folder DIR] [--model PATH]

onnxruntime-openvino brings the module onnxruntime too, so it cannot be installed beside it. This
makes an environment in DIR (default work/openvino; about 600 MB, once) with an edge's packages and
that one. There it runs `doctor`, the tests that need OpenVINO, and answers of the real model
through a server of this environment: twice, and with drafts. All must have the same tokens, which
is what the edge promises of a provider. How many of them the CPU's kernels give too is printed: the
provider computes with the same weights, and rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import tomllib

from tests.arm64.emulated import SPLITPOINT, ran, served

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/smollm2-135m-instruct"
REPLACED = "onnxruntime"
PACKAGES = ("onnxruntime-openvino>=1.24", "pytest>=8.3", "pytest-timeout>=2.3")
TESTED = "tests/hwprofiles/providers"
QUESTION = "Explain in a few sentences how a heat pump warms a house in winter."
ASKED = ("--chat", QUESTION, "--max-new-tokens", "64", "--ignore-eos", "--level", "lossless")


def main() -> int:
    """0 where everything passed or nothing can be run here, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Run a front on OpenVINO.")
    parser.add_argument("--folder", type=Path, default=ROOT / "work/openvino")
    parser.add_argument("--model", type=Path, default=MODEL)
    asked = parser.parse_args()
    if not sys.platform.startswith("linux") or os.uname().machine != "x86_64":
        print("test-openvino: skipped, its package is for x86-64 Linux")
        return 0
    python = environment(asked.folder)
    failed = False
    checks: dict[str, Callable[[Path], str]] = {
        "doctor": check_doctor,
        "tests": check_tests,
        "answers": partial(check_answers, model=asked.model),
    }
    for name, check in checks.items():
        told = check(python)
        print(f"test-openvino: {name}: {told}", flush=True)
        failed |= told.startswith("FAILED")
    return int(failed)


def environment(folder: Path) -> Path:
    """The interpreter of an environment with an edge's packages and OpenVINO's onnxruntime."""
    python = folder.resolve() / "venv/bin/python"
    if not python.exists():
        ran(sys.executable, "-m", "venv", str(python.parents[1]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["edge"]]
    needed = [each for each in needed if re.split(r"[<>=]", each)[0] != REPLACED]
    ran(str(python), "-m", "pip", "install", "-q", *needed, *PACKAGES)
    return python


def there(python: Path, *words: str) -> str:
    """stdout of a module run in that environment; SystemExit with its last lines if it fails."""
    return ran("env", f"PYTHONPATH={ROOT}", "COLUMNS=400", str(python), "-m", *words)


def check_doctor(python: Path) -> str:
    """`doctor` names what OpenVINO runs."""
    told = " ".join(there(python, "splitpoint", "doctor").split())
    found = re.search(r"provider openvino\W+(runs 4-bit products[^│]*)", told)
    return found[1] if found else "FAILED: doctor does not name what openvino runs"


def check_tests(python: Path) -> str:
    """The tests that are skipped elsewhere."""
    options = ("-q", "-p", "no:cacheprovider", "--confcutdir", str(ROOT / TESTED))
    path = str(ROOT / TESTED / "test_openvino.py")
    summary = there(python, "pytest", *options, path).strip().splitlines()[-1]
    return f"FAILED: {summary}" if "skipped" in summary else summary


def check_answers(python: Path, model: Path) -> str:
    """The same answer each time, and how it compares with the CPU's."""
    if not model.exists():
        return f"skipped, {model} is not there (make setup)"
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "bundle")
        made = ("--split", "10", "--no-calibrate", "--weights", "copy", "--out", bundle)
        ran(*SPLITPOINT, "build", "--model", str(model), *made)
        with served(Path(bundle)) as address:
            common = (bundle, "--server", address, *ASKED)

            def answer(provider: str, draft: str) -> tuple[dict[str, Any], float]:
                trace = Path(folder) / "trace.jsonl"
                options = ("--provider", provider, "--draft", draft, "--trace", str(trace))
                told = there(python, "splitpoint", "run", *common, *options, "--json")
                return json.loads(told), front_seconds(trace)

            here, cpu_s = answer("cpu", "off")
            first, openvino_s = answer("openvino", "off")
            others = [answer("openvino", draft)[0] for draft in ("off", "ngram")]
    if any(other["tokens"] != first["tokens"] for other in others):
        return "FAILED: openvino gave other tokens the second time or with drafts"
    pairs = list(zip(here["tokens"], first["tokens"], strict=True))
    equal = next((n for n, (one, other) in enumerate(pairs) if one != other), len(pairs))
    front = first["front"]
    return (
        f"{len(pairs)} tokens three times alike; the first {equal} are the CPU's too; "
        f"of {front['nodes']} nodes the CPU runs {front['nodes_on_cpu']}; rows "
        f"{100 * front['row_difference']:.2g} % from the CPU's; a row takes "
        f"{openvino_s / cpu_s:.2g} times as long in the front ({1e3 * openvino_s:.3g} and "
        f"{1e3 * cpu_s:.3g} ms)"
    )


def front_seconds(trace: Path) -> float:
    """The median of the front's seconds in decode steps."""
    steps = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    return statistics.median(step["front_s"] for step in steps if step["phase"] == "decode")


if __name__ == "__main__":
    sys.exit(main())
