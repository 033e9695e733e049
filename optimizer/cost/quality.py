"""What a configuration costs in quality: percent of perplexity, certified where it was measured.

The parts multiply: (1 + drop) = product over front weights, back weights, KV cache and codec level
of (1 + part). That the logarithms of perplexity add up is an assumption (ours); for a codec level
on top of a quantized front it is checked by `splitpoint certify` on the built bundle.

Codec levels come from certificates (`splitpoint certify --json`), with one standard error added.
At a split without one, the worse of its neighbours' counts. Without certificates, and for weights
and caches, the numbers are *assumed*, and plans say so. They are meant to err on the high side:

- weights of the front: 4 bits (`optimizer.export.front.rounding`) 10 %, and 15 % in large blocks;
  8 bits 0.5 %, 16 bits 0.05 %, with all layers quantized, in proportion to the layers that are.
  SmolLM2-135M, 29 of 30 layers at 4 bits: 8.1 %, and 12.1 % in large blocks (docs/results/edge.md);
  larger models lose less.
- weights of the back: 8 bits, a scale a row, 0.5 %; 16 bits 0.05 %, in proportion likewise.
- KV cache: 8 bits 1 %, 16 bits 0.05 %, in proportion to the layers on the edge.
- levels (each kind in `codec.levels`): about twice what SmolLM2-135M lost at the worst of splits 5
  to 20 (docs/results/codec.md), where it was measured: `q2`, `q3`, `q4` and `tabq2`. The others by
  the KL that they aim at, likewise doubled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from codec.levels.lossless import LOSSLESS
from codec.levels.registry import EXTRA_LEVELS, LADDER_LEVELS
from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.artifacts.prediction import QualitySource
from optimizer.errors import PlanError

ASSUMED_FRONT_PCT: Final[Mapping[int, float]] = {4: 10.0, 8: 0.5, 16: 0.05, 32: 0.0}
ASSUMED_LARGE_BLOCKS_PCT: Final[Mapping[int, float]] = {**ASSUMED_FRONT_PCT, 4: 15.0}
ASSUMED_BACK_PCT: Final[Mapping[int, float]] = {8: 0.5, 16: 0.05, 32: 0.0}
ASSUMED_KV_PCT: Final[Mapping[int, float]] = {8: 1.0, 16: 0.05, 32: 0.0}
ASSUMED_LEVEL_PCT: Final[Mapping[str, float]] = {
    level.name: level.quality_loss_pct for level in (*LADDER_LEVELS, *EXTRA_LEVELS)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCertificate:
    """One level at one split, as certified: bits an element of one-row and of prompt frames, and
    the rise of perplexity with one standard error added."""

    bits_per_element: float
    prefill_bits_per_element: float
    drop_pct: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityModel:
    """Drops in percent, by part.

    `certificates`: split -> level -> what was certified. `front_pct`, `back_pct`, `kv_pct`: bits
    -> drop with all layers at these bits. `layer_pct`: layer -> drop of that front layer at 4
    and at 8 bits, where it was measured (replaces `front_pct` for these bits).
    """

    num_layers: int
    certificates: Mapping[int, Mapping[str, LevelCertificate]] = field(default_factory=dict)
    front_pct: Mapping[int, float] = field(default_factory=lambda: ASSUMED_FRONT_PCT)
    back_pct: Mapping[int, float] = field(default_factory=lambda: ASSUMED_BACK_PCT)
    kv_pct: Mapping[int, float] = field(default_factory=lambda: ASSUMED_KV_PCT)
    level_pct: Mapping[str, float] = field(default_factory=lambda: ASSUMED_LEVEL_PCT)
    layer_pct: tuple[Mapping[int, float], ...] = ()

    def in_large_blocks(self) -> QualityModel:
        """The same with fronts in large blocks: their loss is assumed, for what was measured of
        layers was measured in small ones."""
        return replace(self, front_pct=ASSUMED_LARGE_BLOCKS_PCT, layer_pct=())

    def front_drop(self, layer_bits: tuple[int, ...]) -> float:
        """log(1 + drop) of a front whose layers have these bits."""
        total = 0.0
        for layer, bits in enumerate(layer_bits):
            measured = self.layer_pct[layer].get(bits) if layer < len(self.layer_pct) else None
            if measured is None:
                total += _log_rise(self.front_pct[bits]) / self.num_layers
            else:
                total += _log_rise(measured)
        return total

    def back_drop(self, split: int, bits: int) -> float:
        """log(1 + drop) of the layers from `split` on at `bits`."""
        return _log_rise(self.back_pct[bits]) * (self.num_layers - split) / self.num_layers

    def kv_drop(self, split: int, bits: int) -> float:
        """log(1 + drop) of the edge's cache at `bits`."""
        return _log_rise(self.kv_pct[bits]) * split / self.num_layers

    def level_drop(self, split: int, level: str) -> float:
        """log(1 + drop) of a codec level at `split`; 0 where no hidden state crosses the link."""
        if level == LOSSLESS.name or split in (0, self.num_layers):
            return 0.0
        found = self.level_certificates(split, level)
        if found:
            return max(_log_rise(item.drop_pct) for item in found)
        if level not in self.level_pct:
            raise PlanError(f"level {level!r}: nothing is known of its quality")
        return _log_rise(self.level_pct[level])

    def level_certificates(self, split: int, level: str) -> tuple[LevelCertificate, ...]:
        """What was certified for `level` at `split`, or at the nearest splits on both sides."""
        splits = sorted(s for s, levels in self.certificates.items() if level in levels)
        if split in splits:
            near = [split]
        else:
            below = [s for s in splits if s < split][-1:]
            near = below + [s for s in splits if s > split][:1]
        return tuple(self.certificates[s][level] for s in near)

    def drop_pct(
        self, *, split: int, layer_bits: tuple[int, ...], back_bits: int, kv_bits: int, level: str
    ) -> float:
        """The whole configuration's drop in percent of perplexity."""
        total = self.front_drop(layer_bits) + self.back_drop(split, back_bits)
        total += self.kv_drop(split, kv_bits) + self.level_drop(split, level)
        return 100 * math.expm1(total)

    def source_of(
        self, *, split: int, layer_bits: tuple[int, ...], back_bits: int, kv_bits: int, level: str
    ) -> QualitySource:
        """Whether nothing that costs quality here is assumed, all of it is, or some of it."""
        known, guessed = 0, 0
        for layer, bits in enumerate(layer_bits):
            if layer < len(self.layer_pct) and bits in self.layer_pct[layer]:
                known += 1
            elif self.front_pct[bits]:
                guessed += 1
        guessed += bool(self.back_pct[back_bits]) and split < self.num_layers
        guessed += bool(self.kv_pct[kv_bits]) and split > 0
        if level != LOSSLESS.name and 0 < split < self.num_layers:
            exact = level in self.certificates.get(split, {})
            known, guessed = known + exact, guessed + (not exact)
        if not guessed:
            return "certified"
        return "partly assumed" if known else "assumed"


def read_certificates(paths: list[Path]) -> dict[int, dict[str, LevelCertificate]]:
    """Certificates as `splitpoint certify --json` prints and bundles store them.

    Raises PlanError naming the file that is not one.
    """
    found: dict[int, dict[str, LevelCertificate]] = {}
    for path in paths:
        try:
            values = read_json(path)
            found[int(values["split"])] = {
                str(level["name"]): LevelCertificate(
                    bits_per_element=float(level["bits_per_element"]),
                    prefill_bits_per_element=float(level["bits_per_element_prefill"]),
                    drop_pct=max(
                        float(level["perplexity_rise_pct"])
                        + float(level["perplexity_rise_stderr_pct"]),
                        0.0,
                    ),
                )
                for level in values["levels"]
            }
        except ProfileError as error:
            raise PlanError(f"not a certificate of 'splitpoint certify': {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{path}: not a certificate of 'splitpoint certify'") from error
    return found


def _log_rise(pct: float) -> float:
    return math.log1p(pct / 100)
