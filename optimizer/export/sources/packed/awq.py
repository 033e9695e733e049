"""AWQ checkpoints (AutoAWQ's "gemm" version): int32 words along the outputs, interleaved.

A linear STEM of K inputs and N outputs, 4 bits, G groups of inputs in order:

    STEM.qweight   int32 [K, N / 8]   from bit 4 i of word (k, c) on: code (k, 8 c + ORDER[i])
    STEM.qzeros    int32 [G, N / 8]   zero points alike, as they are
    STEM.scales    float [G, N]

Source: Lin et al. 2023 (arXiv:2306.00978) and AutoAWQ's `WQLinear_GEMM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.sources.packed.assembly import (
    AssembledTensor,
    Assembly,
    RawReader,
    check_shape,
    part_of,
    weight_like,
)
from optimizer.export.sources.packed.matrix_grid import MatrixGrid, even_groups, unpacked
from optimizer.export.sources.safetensors_header import StoredTensor

BITS: Final = 4
WORD_CODES: Final = 8
# The output of each code of a word, from its lowest bits on.
ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS: Final = ("qweight", "qzeros", "scales")


class AwqFormat:
    """See the module."""

    name = "AWQ, 4 bits"

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """See PackedFormat."""
        weights: dict[str, AssembledTensor] = {}
        used: set[str] = set()
        for name in stored:
            stem, _, last = name.rpartition(".")
            if last != "qweight":
                continue
            parts = {part: part_of(stored, stem, part) for part in _PARTS}
            codes, scales = parts["qweight"], parts["scales"]
            if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.dtype != "I32":
                raise ModelError(f"{codes.origin}: not AWQ's int32 words and scales by group")
            inputs, words = codes.shape
            groups = scales.shape[0]
            check_shape(scales, (groups, words * WORD_CODES), "AWQ")
            check_shape(parts["qzeros"], (groups, words), "AWQ")
            if not groups or inputs % groups:
                raise ModelError(f"{scales.origin}: {groups} groups of {inputs} inputs")
            weights[f"{stem}.weight"] = _assembled(stem, parts, raw)
            used.update(f"{stem}.{part}" for part in parts)
        return Assembly(weights=weights, used=frozenset(used))


def awq_format(settings: Mapping[str, Any], where: str) -> AwqFormat:
    """The format that a config's section describes. Raises ModelError for what is not read."""
    bits = settings.get("bits", settings.get("w_bit"))
    if bits != BITS:
        raise ModelError(f"{where}: AWQ with {bits} bits is not read; 4 bits are")
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    backend = str(settings.get("backend") or "autoawq").lower()
    if version != "gemm" or backend == "llm-awq":
        found = version if version != "gemm" else backend
        raise ModelError(f"{where}: AWQ's version {found!r:.40} is not read; gemm is")
    if settings.get("zero_point") is False:
        raise ModelError(f"{where}: AWQ without zero points is not read")
    return AwqFormat()


def _assembled(stem: str, parts: Mapping[str, StoredTensor], raw: RawReader) -> AssembledTensor:
    inputs, words = parts["qweight"].shape

    def grid() -> MatrixGrid:
        codes = _in_order(raw(parts["qweight"]))  # [K, N]
        scales = raw(parts["scales"]).to(torch.float32)
        return MatrixGrid(
            bits=BITS,
            codes=codes.T.contiguous(),
            scales=scales.T.contiguous(),
            zeros=_in_order(raw(parts["qzeros"])).to(torch.int16).T.contiguous(),
            group_of=even_groups(inputs, len(scales)),
        )

    return AssembledTensor(
        stored=weight_like(parts["qweight"], stem, (words * WORD_CODES, inputs)),
        read=lambda: grid().weight(),
        grid=grid,
    )


def _in_order(words: Tensor) -> Tensor:
    """Codes uint8 [rows, 8 n] of words [rows, n], by output."""
    codes = unpacked(words, BITS).view(*words.shape, WORD_CODES)
    back = [ORDER.index(output) for output in range(WORD_CODES)]
    return codes[..., back].flatten(-2)
