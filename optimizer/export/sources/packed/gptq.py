"""GPTQ checkpoints (AutoGPTQ, GPTQModel): int32 words along the inputs.

A linear STEM of K inputs and N outputs, P = 32 / bits codes a word, G groups:

    STEM.qweight   int32 [K / P, N]   code (k, n) in word (k // P, n), from bit (k % P) * bits on
    STEM.qzeros    int32 [G, N / P]   zero points alike, along n; format v1 stores them minus one
    STEM.scales    float [G, N]
    STEM.g_idx     int32 [K]          the group of each input; without it groups lie in order

Source: Frantar et al. 2022 (arXiv:2210.17323) and AutoGPTQ's `qlinear` modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

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

READ_BITS: Final = (2, 4, 8)
_FORMATS: Final = {"gptq": 1, "gptq_v2": 0}  # what to add to a stored zero point


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqFormat:
    """See the module. zero_shift: what is added to a stored zero point."""

    bits: int
    zero_shift: int

    @property
    def name(self) -> str:
        """See PackedFormat."""
        return f"GPTQ, {self.bits} bits"

    def assemble(self, stored: Mapping[str, StoredTensor], raw: RawReader) -> Assembly:
        """See PackedFormat."""
        weights: dict[str, AssembledTensor] = {}
        used: set[str] = set()
        for name in stored:
            stem, _, last = name.rpartition(".")
            if last != "qweight":
                continue
            parts = self._parts(stored, stem)
            words, outputs = parts["qweight"].shape
            shape = (outputs, words * 32 // self.bits)
            weights[f"{stem}.weight"] = _assembled(self, stem, parts, shape, raw)
            used.update(f"{stem}.{part}" for part in parts)
        return Assembly(weights=weights, used=frozenset(used))

    def _parts(self, stored: Mapping[str, StoredTensor], stem: str) -> dict[str, StoredTensor]:
        parts = {part: part_of(stored, stem, part) for part in ("qweight", "qzeros", "scales")}
        if f"{stem}.g_idx" in stored:
            parts["g_idx"] = stored[f"{stem}.g_idx"]
        codes, scales = parts["qweight"], parts["scales"]
        if len(codes.shape) != 2 or len(scales.shape) != 2 or codes.dtype != "I32":
            raise ModelError(f"{codes.origin}: not GPTQ's int32 words and scales by group")
        outputs = codes.shape[1]
        why = f"GPTQ with {self.bits} bits"
        check_shape(scales, (scales.shape[0], outputs), why)
        check_shape(parts["qzeros"], (scales.shape[0], -(-outputs * self.bits // 32)), why)
        if "g_idx" in parts:
            check_shape(parts["g_idx"], (codes.shape[0] * 32 // self.bits,), why)
        return parts

    def grid(self, parts: Mapping[str, StoredTensor], raw: RawReader) -> MatrixGrid:
        """Codes and scales of one linear. Raises ModelError for a group that does not exist."""
        codes = unpacked(raw(parts["qweight"]).T.contiguous(), self.bits)  # [N, K]
        scales = raw(parts["scales"]).to(torch.float32)  # [G, N]
        zeros = unpacked(raw(parts["qzeros"]), self.bits)[:, : codes.shape[0]].to(torch.int16)
        zeros = (zeros + self.zero_shift) & ((1 << self.bits) - 1)
        if "g_idx" in parts:
            group_of = raw(parts["g_idx"]).to(torch.int64)
            if bool((group_of < 0).any()) or bool((group_of >= len(scales)).any()):
                raise ModelError(
                    f"{parts['g_idx'].origin}: names a group beyond the {len(scales)} there are"
                )
        else:
            group_of = even_groups(codes.shape[1], len(scales))
        return MatrixGrid(
            bits=self.bits,
            codes=codes,
            scales=scales.T.contiguous(),
            zeros=zeros.T.contiguous(),
            group_of=group_of,
        )


def gptq_format(settings: Mapping[str, Any], where: str) -> GptqFormat:
    """The format that a config's section describes. Raises ModelError for what is not read."""
    bits = settings.get("bits")
    if bits not in READ_BITS:
        raise ModelError(f"{where}: GPTQ with {bits} bits is not read; 2, 4 or 8 bits are")
    kind = str(settings.get("checkpoint_format") or "gptq")
    if settings.get("is_marlin_format"):
        kind = "marlin"
    if kind not in _FORMATS:
        raise ModelError(f"{where}: GPTQ's format {kind!r:.40} is not read; gptq and gptq_v2 are")
    dynamic = settings.get("dynamic") or {}
    if any(not str(pattern).startswith("-") for pattern in dynamic):
        raise ModelError(f"{where}: GPTQ with other bits in some layers (dynamic) is not read")
    return GptqFormat(bits=bits, zero_shift=_FORMATS[kind])


def _assembled(
    packed: GptqFormat,
    stem: str,
    parts: Mapping[str, StoredTensor],
    shape: tuple[int, int],
    raw: RawReader,
) -> AssembledTensor:
    def grid() -> MatrixGrid:
        return packed.grid(parts, raw)

    return AssembledTensor(
        stored=weight_like(parts["qweight"], stem, shape),
        read=lambda: grid().weight(),
        grid=grid,
    )
