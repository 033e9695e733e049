"""Compiles the kernels of a decode step for one compute capability, without a GPU.

    python tests/cloud/gpu/step_kernels.py 90

Prints JSON: by kernel, the bytes of shared memory, and how many instructions of its assembly wait
for the kernel before (`griddepcontrol.wait`). In a process of its own: Triton's interpreter, which
the tests run, does not compile.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cloud.gpu import attention_kernels, layer_kernels, one_row, random_numbers

HALF, WORDS, FLOATS = "*bf16", "*i32", "*fp32"
ROWS = {"base": WORDS, "stride": WORDS, "slots": WORDS, "positions": WORDS, "splits": WORDS}
HEADS = {"H": 32, "D": 128, "BLOCK_D": 128}
PARTS = {"part_out": FLOATS, "part_max": FLOATS, "part_sum": FLOATS}
SCORES = {"KV": 8, "G": 4, "HAS_CAP": True, "PRECISION": "tf32", "PAGE": 16}
# By kernel: pointers beside ROWS, constants, options. What is neither is a number.
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]] = {
    "add_norm": (
        layer_kernels._add_norm,
        {"hidden": HALF, "delta": HALF, "out": HALF, "after": FLOATS, "weight": FLOATS},
        {"HAS_DELTA": True, "HAS_AFTER": True, "HAS_WEIGHT": True, "BLOCK": 4096},
        {"num_warps": 8},
    ),
    "rotate_store": (
        layer_kernels._rotate_store,
        dict.fromkeys(("qkv", "queries", "arena", "cosine", "sine"), HALF)
        | {"query_norm": FLOATS, "key_norm": FLOATS},
        {"H": 32, "KV": 8, "D": 128, "BLOCK": 128, "HAS_NORMS": True, "PAGE": 16},
        {"num_warps": 1},
    ),
    "gated": (
        layer_kernels._gated,
        {"gate_up": HALF, "out": HALF},
        {"KIND": 1, "BLOCK": 1024},
        {},
    ),
    "store_rows": (
        layer_kernels._store_rows,
        {"keys_values": HALF, "arena": HALF},
        {"HEADS": 16, "D": 128, "BLOCK": 128, "PAGE": 16},
        {"num_warps": 1},
    ),
    "decode_part": (
        attention_kernels._decode_part,
        {"queries": HALF, "arena": HALF, **PARTS},
        HEADS | SCORES | {"BLOCK_G": 16, "BLOCK_N": 64, "PART": 64, "PARTS": 16},
        {"num_warps": 4, "num_stages": 3},
    ),
    "join_parts": (
        attention_kernels._join_parts,
        {"out": HALF, "sinks": FLOATS, **PARTS},
        HEADS | {"PART": 64, "PARTS": 16, "HAS_SINKS": True},
        {"num_warps": 1},
    ),
    "run_block": (
        attention_kernels._run_block,
        {"queries": HALF, "arena": HALF, "out": HALF, "sinks": FLOATS}
        | {"firsts": WORDS, "counts": WORDS},
        HEADS | SCORES | {"SIZE": 32, "BLOCK_M": 128, "BLOCK_N": 64, "HAS_SINKS": True},
        {"num_warps": 8, "num_stages": 2},
    ),
    "one_row": (
        one_row._one_row,
        {"x": HALF, "weight": "*i8", "scale": FLOATS, "bias": FLOATS, "out": HALF},
        {"HAS_SCALE": True, "HAS_BIAS": True, "EVEN": False, "BLOCK_N": 4, "BLOCK_K": 2048},
        {"num_warps": 4},
    ),
    "uniform": (
        random_numbers._uniform,
        {"seeds": "*i64", "positions": "*i64", "out": "*fp64"},
        {"BLOCK": 64},
        {"num_warps": 2},
    ),
}
REALS = ("eps", "after_eps", "scale", "cap")


def compiled(name: str, capability: int) -> dict[str, int]:
    function, pointers, constants, options = KERNELS[name]
    if "OVERLAP" in function.arg_names:
        constants = constants | {"OVERLAP": capability >= 90}
    types = ROWS | pointers
    signature = {
        argument: "constexpr"
        if argument in constants
        else types.get(argument, "fp32" if argument in REALS else "i32")
        for argument in function.arg_names
    }
    aligned = [i for i, argument in enumerate(function.arg_names) if argument in types]
    source = ASTSource(
        function,
        signature,
        constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    waits = kernel.asm["ptx"].count("griddepcontrol.wait")
    return {"shared": kernel.metadata.shared, "waits": waits}


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: compiled(name, int(sys.argv[1])) for name in KERNELS}))
