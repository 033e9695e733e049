"""The shipped GPU profiles beside NVIDIA's published tables of kernel times.

    pip download --no-deps aiconfigurator-core==0.12.0 && unzip aiconfigurator_core-*.whl -d tables
    python -m benchmarks.planning.published_gpu_tables tables/aiconfigurator_core/systems/data

The tables (AIConfigurator, Apache-2.0) have measured times of single kernels of vLLM on each GPU:
matrix products in bfloat16, attention of decode steps and of prompts. Here they are added up to one
layer of models whose matrices are all on the tables' grid, and compared with what the cost model
says of the profile. The model's layers have norms and an activation too, the published ones have
not. Needs pyarrow. Prints a table
in Markdown, and JSON last.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.specs import load_spec
from optimizer.cost.attention import attended_s
from optimizer.cost.cloud import BackCost
from optimizer.cost.weights import Matrix, back_layer_matrices

# Our profile, the tables' folder, and the version of vLLM in it.
GPUS: Final = (
    ("a100-80gb", "a100_sxm", "0.14.0"),
    ("h100-80gb", "h100_sxm", "0.24.0"),
    ("h200-141gb", "h200_sxm", "0.24.0"),
)
MODELS: Final = ("llama-3.2-1b", "llama-3.2-3b", "qwen3-1.7b", "qwen3-8b")
ROWS: Final = (1, 8, 64, 256, 2048, 8192)  # of a product
DECODES: Final = ((1, 1024), (8, 1024), (64, 1024), (256, 1024), (1, 8192), (64, 8192))
PROMPTS: Final = ((1, 512), (1, 2048), (8, 2048))  # prompts at once, tokens each

Key = tuple[int, ...]


class Tables:
    """The tables of one GPU. Milliseconds by the sizes of a kernel's work."""

    def __init__(self, folder: Path, version: str) -> None:
        self._products = _read(
            folder / "gemm/vllm" / version / "gemm_perf.parquet",
            ("m", "n", "k"),
            {"gemm_dtype": "bfloat16"},
        )
        attention = folder / "attention/vllm" / version
        whole = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16", "window_size": 0}
        sizes = ("batch_size", "num_heads", "num_key_value_heads", "head_dim")
        self._decode = _read(
            attention / "generation_attention_perf.parquet", (*sizes, "step"), whole
        )
        self._prompt = _read(attention / "context_attention_perf.parquet", (*sizes, "isl"), whole)

    def product_s(self, rows: int, inputs: int, outputs: int) -> float:
        """[rows, inputs] x [inputs, outputs]; one that is not in the table as its two halves."""
        if (rows, outputs, inputs) in self._products:
            return self._products[rows, outputs, inputs] / 1e3
        return 2 * self._products[rows, outputs // 2, inputs] / 1e3

    def decode_s(self, sessions: int, geometry: ModelGeometry, tokens: int) -> float:
        """One layer's attention of a row each, over so many tokens; NaN: not in the table."""
        return self._decode.get((sessions, *_heads(geometry), tokens - 1), math.nan) / 1e3

    def prompt_s(self, prompts: int, geometry: ModelGeometry, tokens: int) -> float:
        """One layer's attention of whole prompts; NaN: not in the table."""
        return self._prompt.get((prompts, *_heads(geometry), tokens), math.nan) / 1e3


def _heads(geometry: ModelGeometry) -> tuple[int, int, int]:
    return geometry.num_heads, geometry.num_kv_heads, geometry.head_dim


def _read(path: Path, key: tuple[str, ...], wanted: Mapping[str, object]) -> dict[Key, float]:
    """The fastest kernel of each size. Older tables know no windows."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    table = parquet.ParquetFile(path).read().to_pydict()
    wanted = {name: value for name, value in wanted.items() if name in table}
    found: dict[Key, float] = {}
    for index, latency in enumerate(table["latency"]):
        if all(table[name][index] == value for name, value in wanted.items()):
            sizes = tuple(table[name][index] for name in key)
            found[sizes] = min(latency, found.get(sizes, latency))
    return found


@dataclass(frozen=True)
class Pair:
    """Seconds of one layer: published and predicted."""

    what: str
    model: str
    case: str
    published_s: float
    predicted_s: float

    @property
    def ratio(self) -> float:
        return self.predicted_s / self.published_s


def pairs(tables: Tables, device: DeviceProfile) -> Iterator[Pair]:
    """Every model and case."""
    for model in MODELS:
        geometry = load_spec(model).geometry
        cost = BackCost(device, geometry, num_layers=1, back_bits=16, kv_bits=16)
        matrices = back_layer_matrices(geometry)
        for rows in ROWS:
            published = sum(tables.product_s(rows, one.inputs, one.outputs) for one in matrices)
            predicted = float(cost.layer_matrices_s(rows))
            yield Pair("products", model, f"{rows} rows", published, predicted)
        for sessions, tokens in DECODES:
            published = sum(tables.product_s(sessions, one.inputs, one.outputs) for one in matrices)
            predicted = float(cost.layer_s(sessions, sessions))
            yield Pair(
                "decode layer",
                model,
                f"{sessions} x {tokens} tokens",
                published + tables.decode_s(sessions, geometry, tokens),
                predicted + sessions * float(attended_s(cost.attention(1), tokens)),
            )
        for prompts, tokens in PROMPTS:
            rows = prompts * tokens
            published = sum(_product_s(tables, rows, one) for one in matrices)
            predicted = float(cost.layer_s(rows, prompts))
            yield Pair(
                "prompt layer",
                model,
                f"{prompts} x {tokens} tokens",
                published + tables.prompt_s(prompts, geometry, tokens),
                predicted + prompts * float(attended_s(cost.attention(tokens), tokens)),
            )


def _product_s(tables: Tables, rows: int, matrix: Matrix) -> float:
    """Of more rows than all tables have: in proportion."""
    most = ROWS[-1]
    scale = max(1.0, rows / most)
    return scale * tables.product_s(min(rows, most), matrix.inputs, matrix.outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path)
    parser.add_argument("--profiles", type=Path, help="a folder of profiles in place of ours")
    arguments = parser.parse_args()
    report: dict[str, Any] = {}
    print("| GPU | kernel | case | predicted / published, median | lowest | highest |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    for profile, folder, version in GPUS:
        path = arguments.profiles / f"{profile}.yaml" if arguments.profiles else profile
        tables = Tables(arguments.tables / folder, version)
        found = [pair for pair in pairs(tables, load_device(path)) if pair.published_s > 0]
        for what, case in dict.fromkeys((pair.what, pair.case) for pair in found):
            ratios = [pair.ratio for pair in found if (pair.what, pair.case) == (what, case)]
            middle = statistics.median(ratios)
            print(
                f"| {profile} | {what} | {case} | {middle:.2f} | {min(ratios):.2f} "
                f"| {max(ratios):.2f} |"
            )
        report[profile] = [vars(pair) for pair in found]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
