"""Writers of quantized checkpoints for tests: an independent view of each format, code by code.

They take a matrix of codes [N, K], zero points and scales [N, G], and place every code with plain
loops, as the formats' own packers do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from optimizer.export.sources.checkpoint_files import WHOLE_NAME

Tensors = dict[str, Tensor]


class Quantized(NamedTuple):
    """A matrix [N, K] on a grid of its own; `groups` [K] is the group of each input."""

    bits: int
    codes: np.ndarray[Any, Any]
    zeros: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any]
    groups: np.ndarray[Any, Any]

    def weight(self) -> Tensor:
        """The weights, one by one, in double precision and then float32."""
        out = np.zeros(self.codes.shape)
        for n in range(out.shape[0]):
            for k in range(out.shape[1]):
                g = self.groups[k]
                step = float(self.scales[n, g])
                out[n, k] = (int(self.codes[n, k]) - int(self.zeros[n, g])) * step
        return torch.from_numpy(out).to(torch.float32)


def random_grid(
    shape: tuple[int, int],
    *,
    bits: int = 4,
    group: int = 32,
    act_order: bool = False,
    symmetric: bool = False,
    seed: int = 0,
) -> Quantized:
    """Random codes, zero points and 16-bit scales."""
    outputs, inputs = shape
    rng = np.random.default_rng(seed)
    count = -(-inputs // group)
    groups = np.arange(inputs) // group
    if act_order:
        groups = rng.permutation(groups)
    zeros = rng.integers(1, 1 << bits, (outputs, count))
    if symmetric:
        zeros[:] = 1 << (bits - 1)
    return Quantized(
        bits,
        rng.integers(0, 1 << bits, (outputs, inputs)),
        zeros,
        rng.uniform(0.01, 0.05, (outputs, count)).astype(np.float16),
        groups,
    )


def _words(rows: int, columns: int) -> np.ndarray[Any, Any]:
    return np.zeros((rows, columns), np.uint64)


def _int32(words: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


def gptq(matrix: Quantized, *, version: int = 1, with_groups: bool = True) -> Tensors:
    """qweight, qzeros, scales and g_idx."""
    outputs, inputs = matrix.codes.shape
    a_word = 32 // matrix.bits
    qweight = _words(inputs // a_word, outputs)
    for n in range(outputs):
        for k in range(inputs):
            shift = (k % a_word) * matrix.bits
            qweight[k // a_word, n] |= np.uint64(int(matrix.codes[n, k]) << shift)
    count = matrix.zeros.shape[1]
    qzeros = _words(count, outputs // a_word)
    for g in range(count):
        for n in range(outputs):
            stored = int(matrix.zeros[n, g]) - (1 if version == 1 else 0)
            qzeros[g, n // a_word] |= np.uint64(stored << ((n % a_word) * matrix.bits))
    out = {
        "qweight": _int32(qweight),
        "qzeros": _int32(qzeros),
        "scales": torch.from_numpy(matrix.scales.T.copy()),
    }
    if with_groups:
        out["g_idx"] = torch.from_numpy(matrix.groups.astype(np.int32))
    return out


def awq(matrix: Quantized) -> Tensors:
    """qweight, qzeros and scales of the gemm version."""
    outputs, inputs = matrix.codes.shape

    def pack(rows: np.ndarray[Any, Any]) -> Tensor:
        words = _words(rows.shape[0], outputs // 8)
        for row in range(rows.shape[0]):
            for word in range(outputs // 8):
                for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):  # AutoAWQ's order_map
                    code = int(rows[row, 8 * word + column])
                    words[row, word] |= np.uint64(code << (4 * place))
        return _int32(words)

    assert inputs
    return {
        "qweight": pack(matrix.codes.T),
        "qzeros": pack(matrix.zeros.T),
        "scales": torch.from_numpy(matrix.scales.T.copy()),
    }


def pack_quantized(matrix: Quantized, *, zeros: str = "packed") -> Tensors:
    """weight_packed, weight_scale, weight_shape, and zero points: packed, int8, or none."""
    outputs, inputs = matrix.codes.shape
    a_word = 32 // matrix.bits
    packed = _words(outputs, -(-inputs // a_word))
    for n in range(outputs):
        for k in range(inputs):
            shift = (k % a_word) * matrix.bits
            packed[n, k // a_word] |= np.uint64(int(matrix.codes[n, k]) << shift)
    out = {
        "weight_packed": _int32(packed),
        "weight_scale": torch.from_numpy(matrix.scales.copy()),
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if zeros == "packed":
        count = matrix.zeros.shape[1]
        words = _words(-(-outputs // a_word), count)
        for n in range(outputs):
            for g in range(count):
                shift = (n % a_word) * matrix.bits
                words[n // a_word, g] |= np.uint64(int(matrix.zeros[n, g]) << shift)
        out["weight_zero_point"] = _int32(words)
    elif zeros == "int8":
        signed = matrix.zeros - (1 << (matrix.bits - 1))
        out["weight_zero_point"] = torch.from_numpy(signed.astype(np.int8))
    if not np.array_equal(matrix.groups, np.sort(matrix.groups)):
        out["weight_g_idx"] = torch.from_numpy(matrix.groups.astype(np.int32))
    return out


def int_quantized(matrix: Quantized) -> Tensors:
    """int8 weight with weight_scale and weight_zero_point."""
    assert matrix.bits == 8
    return {
        "weight": torch.from_numpy((matrix.codes - 128).astype(np.int8)),
        "weight_scale": torch.from_numpy(matrix.scales.copy()),
        "weight_zero_point": torch.from_numpy((matrix.zeros - 128).astype(np.int8)),
    }


def packed_copy(
    folder: Path,
    out: Path,
    settings: dict[str, Any],
    pack: Callable[[str, tuple[int, int]], tuple[Tensors, Tensor]],
) -> dict[str, Tensor]:
    """A copy of a checkpoint whose linears of layer 1 are packed; returns the weights it means.

    pack: for a name and a shape, the parts, and the weight that they stand for.
    """
    shutil.copytree(folder, out)
    tensors = load_file(out / WHOLE_NAME)
    meant: dict[str, Tensor] = {}
    for name in sorted(tensors):
        if not name.endswith("_proj.weight") or "layers.1." not in name:
            continue
        parts, meant[name] = pack(name, _shape_of(tensors.pop(name)))
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(tensors, out / WHOLE_NAME, metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = settings
    (out / "config.json").write_text(json.dumps(config))
    return meant


def _shape_of(matrix: Tensor) -> tuple[int, int]:
    outputs, inputs = matrix.shape
    return outputs, inputs
