"""The kernels compile for the GPUs they are meant for: Triton needs no GPU for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

# In a process of its own: the interpreter, which this one may run, does not compile.
SCRIPT = """
import json, re, sys
import triton
from triton.backends.compiler import GPUTarget
from cloud.gpu.weight_only import product_kernel, tiling

def compiled(capability, codes, rows, count, num_outputs):
    plan = tiling(count, num_outputs, 4 if rows == "fp32" else 2)
    signature = {
        "x_ptr": "*" + rows, "codes_ptr": "*" + codes, "scale_ptr": "*fp32", "bias_ptr": "*fp32",
        "out_ptr": "*" + rows, "num_rows": "i32", "N": "i32", "K": "i32",
    }
    aligned = [i for i, name in enumerate(signature) if name != "num_rows"]
    constants = {
        "HAS_BIAS": True, "EVEN_K": True, "IN_FLOAT32": False,
        "BLOCK_T": plan.block_t, "BLOCK_N": plan.block_n, "BLOCK_K": plan.block_k,
    }
    source = triton.compiler.ASTSource(
        product_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {
        "num_warps": plan.num_warps, "num_stages": plan.num_stages, "enable_fp_fusion": True,
    }
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = kernel.asm["ptx"]
    found = set(re.findall(r"wgmma\\.mma_async\\S+|mma\\.sync\\S+", ptx))
    # The number of tokens is the only part that T may change.
    found = sorted({re.sub(r"(m64)n\\d+(k16)", r"\\1\\2", each) for each in found})
    return kernel.metadata.shared, found

print(json.dumps([compiled(*case) for case in json.loads(sys.argv[1])]))
"""
FOUR_BIT_SCRIPT = (
    SCRIPT.replace("weight_only import product_kernel, tiling", "four_bit import four_bit_kernel")
    .replace("import GPUTarget\n", "import GPUTarget\nfrom cloud.gpu.weight_only import tiling\n")
    .replace("product_kernel,", "four_bit_kernel,")
    .replace('"scale_ptr": "*fp32"', '"scale_ptr": "*bf16", "low_ptr": "*bf16"')
    .replace('"BLOCK_K": plan.block_k', '"GROUP": 64')
)
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
CASES = [
    (80, "i8", "bf16", 576),
    (89, "fp8e4nv", "bf16", 28672),
    (90, "i8", "bf16", 4096),
    (90, "fp8e4nv", "bf16", 28672),
]
FOUR_BIT_CASES = [(80, "u8", "bf16", 576), (89, "u8", "bf16", 28672), (90, "u8", "bf16", 28672)]


@pytest.mark.parametrize(
    ("script", "cases"),
    [(SCRIPT, CASES), (FOUR_BIT_SCRIPT, FOUR_BIT_CASES)],
    ids=["8 bits", "4 bits"],
)
def test_it_fits_and_multiplies_alike_for_any_number_of_rows(
    script: str, cases: list[tuple[int, str, str, int]], tmp_path: Path
) -> None:
    asked = [(*case[:3], count, case[3]) for case in cases for count in (1, 32, 64)]
    asked.append((89, cases[0][1], "fp32", 1, 28672))
    finished = subprocess.run(
        [sys.executable, "-c", script, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
            "TRITON_CACHE_DIR": str(tmp_path),
        },
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    used: dict[tuple[int, str, str, int], set[tuple[str, ...]]] = {}
    for case, (shared, found) in zip(asked, json.loads(finished.stdout), strict=True):
        capability, codes, rows, _, num_outputs = case
        assert shared <= SHARED_BYTES[capability], case
        used.setdefault((capability, codes, rows, num_outputs), set()).add(tuple(found))
    assert all(len(ways) == 1 for ways in used.values()), used
    for (_, _, rows, _), (way,) in used.items():
        assert bool(way) == (rows == "bf16")  # float32 has no exact matrix instruction


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_kernels_of_a_step_fit_and_wait_for_the_one_before(
    tmp_path: Path, capability: int
) -> None:
    script = Path(__file__).with_name("step_kernels.py")
    finished = subprocess.run(
        [sys.executable, str(script), str(capability)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={
            **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
            "TRITON_CACHE_DIR": str(tmp_path),
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    for name, found in json.loads(finished.stdout).items():
        assert found["shared"] <= SHARED_BYTES[capability], name
        # A kernel that may begin early has to wait before it reads what another one wrote.
        assert found["waits"] == (capability >= 90 and name != "uniform"), name
