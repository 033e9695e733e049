"""A wrong value is answered at once, in one line, with what was probably meant."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SLOW = ("torch", "transformers", "onnxruntime", "grpc")
ASK = f"""
import io, json, sys, contextlib
from splitpoint.cli import main
said = io.StringIO()
with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
    found = []
    for line in json.loads(sys.argv[1]):
        said.seek(0), said.truncate()
        status = main(line.split())
        found.append([status, said.getvalue(), [n for n in {SLOW!r} if n in sys.modules]])
print(json.dumps(found))
"""
PLAN = "plan --model smollm2-135m --edge raspberry-pi-5-8gb --cloud l4-24gb --link wifi"
BUILD = "build --model m --out o --split 3"
EMULATE = "emulate-link --to 127.0.0.1:1 --rtt-ms 40"
CASES = {
    # units
    f"{PLAN} --max-tbt 150": "for 150 ms write 0.15",
    f"{PLAN} --max-ttft 4000": "for 4000 ms write 4",
    f"{PLAN} --edge-memory 4": "--edge-memory '4' has no unit: write 4G, or 4MiB",
    f"{PLAN} --cloud-memory-per-session 64": "write 64G, or 64MiB",
    "run b x --deadline-tbt 150": "--deadline-tbt 150 is in seconds, at most 30; for 150 ms",
    "run b x --recover-within 600000": "for 600000 ms write 600",
    "run b x --memory-limit 160": "--memory-limit '160' has no unit",
    "serve b --kv-memory 2": "--kv-memory '2' has no unit: write 2G",
    "serve b --frame-memory many": "--frame-memory 'many' is not a size",
    "serve b --max-wait 5000": "for 5000 ms write 5",
    "serve b --max-stall 30000": "for 30000 ms write 30",
    "serve b --drain inf": "--drain inf is in seconds",
    "simulate p --budget-tbt 150": "for 150 ms write 0.15",
    f"{EMULATE} --up-mbps 20000000 --down-mbps 4": "for 2e+07 bit/s write 20",
    "profile link --server a:1 --max-bytes 16": "--max-bytes '16' has no unit",
    "profile device --role edge --sustained 300": "--sustained 300: give 0.5 to 240 minutes, or 0",
    "profile device --role edge --sustained nan": "--sustained nan: give 0.5 to 240 minutes",
    "profile device --role edge --sustained -1": "--sustained -1: give 0.5 to 240 minutes",
    "profile device --role cloud --sustained 5": "measures the edge's kernels: give --role edge",
    "demo --edge-memory 112": "--edge-memory '112' has no unit",
    # nearly right names
    f"{PLAN} --objective tbtt": "did you mean tbt?",
    f"{PLAN} --level lossles": "did you mean lossless?",
    "run b x --level losless": "did you mean lossless?",
    "run b x --draft ngrams": "did you mean ngram?",
    "run b x --power lwo": "did you mean low?",
    "run b x --prefill clod": "did you mean cloud?",
    "run b x --prefer clod": "did you mean cloud?",
    "run b x --context shft": "did you mean shift?",
    "chat b --context handovr": "did you mean handover?",
    "serve b --device cdua": "did you mean cuda?",
    "serve b --weights fp9": "--weights fp9: choose one of bf16, fp8, int8",
    "serve b --kv-type fp8 --tensor-parallel 2": "does not go with --tensor-parallel 2",
    "serve b --kv-type int8": "--kv-type int8: choose one of bf16, fp8",
    "serve b --kv-type fp8 --device cpu": "--kv-type fp8: works on a GPU only",
    "serve b --weights fp8 --device cpu": "--weights fp8: works on a GPU only",
    f"{BUILD} --weights refrence": "did you mean reference?",
    f"{BUILD} --side clod": "did you mean cloud?",
    f"{BUILD} --front-bits 5": "--front-bits 5: choose one of 4, 8, 16, 32",
    f"{BUILD} --device gpu": "--device gpu: choose one of auto, cpu, cuda",
    "certify b --model m --text t --levels losless": "did you mean lossless?",
    "sensitivity --model m --split 1 --text t --out o --device cud": "did you mean cuda?",
    "train-draft b --model m --device cud": "did you mean cuda?",
    "bench decode b --draft modl": "did you mean model?",
    PLAN.replace("wifi", "wi-fi"): "did you mean wifi?",
    PLAN.replace("l4-24gb", "l4-24g"): "did you mean l4-24gb?",
    PLAN.replace("smollm2-135m", "smollm2-135"): "did you mean smollm2-135m?",
    "model fetch smollm2-135m-instuct": "did you mean smollm2-135m-instruct?",
    "profile show raspberry-pi5": "did you mean raspberry-pi-5-8gb?",
    # others
    "serve /no/such/bundle": "/no/such/bundle: no such bundle folder",
    "run b x --top-p 3": "top-p is 3.0",
    "run b": "or - to read standard input",
    "serv b": "Did you mean 'serve'?",
    "run b x --promt": "--prompt",
}


def test_wrong_values_are_answered_before_anything_slow_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(list(CASES))],
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    for (line, expected), (status, said, slow) in zip(
        CASES.items(), json.loads(done.stdout), strict=True
    ):
        assert expected in said, line
        assert len(said.splitlines()) == 1, line
        assert status in (1, 2), line
        assert slow == [], line


@pytest.mark.parametrize("value", ["3.9", "0.15", "30", "none"])
def test_values_that_people_mean_pass(value: str) -> None:
    from splitpoint.commands.limit_options import LimitOptions

    LimitOptions(max_tbt=value).limits()
