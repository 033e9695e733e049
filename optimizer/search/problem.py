"""The question put to the optimizer: model, machines, limits, objective, and what may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import BACK_BITS, FRONT_BITS, KV_BITS, WeightBlocks
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.codec import LevelCost
from optimizer.cost.energy import NO_SENSOR, measured_watts
from optimizer.cost.money import NO_PRICES, Prices, watts_of
from optimizer.cost.quality import QualityModel
from optimizer.cost.request import NO_DRAFTS, DraftedRound
from optimizer.errors import PlanError

Objective = Literal["tbt", "ttft", "cloud-cost", "context", "quality", "cost"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
CHUNKS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPrecision:
    """One way to quantize fronts. `layer_bits` has, for every split at which this one exists, the
    bits of each layer; empty: all layers have `front_bits`, at every split. `streamed_share`: of
    the layers that can be streamed, those that are."""

    front_bits: int
    layer_bits: Mapping[int, tuple[int, ...]] = field(default_factory=dict, hash=False)
    streamed_share: float = 0.0

    def bits_at(self, split: int) -> tuple[int, ...] | None:
        """Bits of the layers of a front of `split` layers; None: there is no such front."""
        if not self.layer_bits:
            return (self.front_bits,) * split
        return self.layer_bits.get(split)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOption:
    """One way to draft: who, how many a round with what success, and bytes on the device.

    `split`: the only split it works at (a draft head is trained on one front); None: any.
    """

    kind: str = "off"
    drafting: DraftedRound = NO_DRAFTS
    memory_bytes: float = 0.0
    split: int | None = None


NO_DRAFTING = DraftOption()


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be chosen, axis by axis, in the order of the grid's axes. Where two choices are
    equal in everything that counts, the one listed first is taken."""

    splits: tuple[int, ...]
    fronts: tuple[FrontPrecision, ...] = tuple(
        FrontPrecision(front_bits=bits) for bits in FRONT_BITS
    )
    back_bits: tuple[int, ...] = BACK_BITS
    kv_bits: tuple[int, ...] = KV_BITS
    levels: tuple[LevelCost, ...]
    chunks: tuple[int, ...] = CHUNKS
    drafts: tuple[DraftOption, ...] = (NO_DRAFTING,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of choices on each axis: split, front, back, KV, level, chunk, drafting."""
        return (
            len(self.splits),
            len(self.fronts),
            len(self.back_bits),
            len(self.kv_bits),
            len(self.levels),
            len(self.chunks),
            len(self.drafts),
        )


class Cell(NamedTuple):
    """One configuration, as an index on each axis of the grid."""

    split: int
    front: int
    back: int
    kv: int
    level: int
    chunk: int
    draft: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Everything but the link.

    `max_tokens`: the sequence that must be possible; the objective `context` looks for the
    longest from there on, every other takes it as it is. `answer_tokens`: the usual answer, whose
    middle TBT is predicted for. `back_from`: the first layer the cloud holds, where that is below
    the split (it then serves other splits too). `slack`: the share of the objective's best value
    within which configurations count as equally good (quality decides then). `prefill`: where a
    prompt's rows may be computed; each configuration takes the place with the least TTFT, the first
    of equals. `prices`: what the objective `cost` counts. `weight_blocks`: of quantized fronts; the
    quality model has to be of the same blocks. `Limits` says the rest; memory that it
    leaves open is bounded by what the profiles call usable. Raises PlanError for what the model
    cannot do.
    """

    geometry: ModelGeometry
    edge: DeviceProfile
    cloud: DeviceProfile
    space: Space
    quality: QualityModel
    limits: Limits = field(default_factory=Limits)
    objective: Objective = "tbt"
    max_tokens: int
    answer_tokens: int
    exact_front: bool = False
    back_from: int | None = None
    slack: float = 0.0
    prefill: tuple[PrefillPlace, ...] = ("edge",)
    prices: Prices = NO_PRICES
    weight_blocks: WeightBlocks = "small"

    def __post_init__(self) -> None:
        context, prompt = self.geometry.context_length, self.limits.prompt_tokens
        if self.objective not in OBJECTIVES:
            raise PlanError(f"objective {self.objective!r}: choose one of {', '.join(OBJECTIVES)}")
        if not 1 <= self.max_tokens <= context:
            raise PlanError(
                f"max tokens {self.max_tokens}: must lie between 1 and the model's context of "
                f"{context}"
            )
        if not 0 <= self.slack < 1:
            raise PlanError(f"slack {self.slack}: must lie between 0 and 1")
        if self.objective == "cost" and not self.has_cost:
            raise PlanError("objective cost: needs a price above 0 that counts here")
        if self.limits.max_cost_per_million is not None and not self.has_cost:
            raise PlanError("a limit on cost: needs a price above 0 that counts here")
        if self.limits.max_joules_per_token is not None and measured_watts(self.edge) is None:
            raise PlanError(f"a limit on energy: {NO_SENSOR.format(self.edge.name)}")
        if not self.prefill:
            raise PlanError("prefill: no place to choose from")
        if set(self.prefill) - {"edge"} and self.back_from != 0:
            raise PlanError(
                f"prefill {self.prefill[-1]}: the server must hold every layer (--back-from 0)"
            )
        if self.answer_tokens < 1:
            raise PlanError(f"answer tokens {self.answer_tokens}: must be at least 1")
        if prompt + self.answer_tokens > self.max_tokens:
            raise PlanError(
                f"prompt ({prompt}) and answer ({self.answer_tokens}) exceed the {self.max_tokens} "
                "tokens of the longest sequence"
            )
        if not all(self.space.shape):
            raise PlanError("nothing to choose from on one of the axes")
        outside = [s for s in self.space.splits if not 0 <= s <= self.geometry.num_layers]
        if outside:
            raise PlanError(f"split {outside[0]}: the model has {self.geometry.num_layers} layers")

    @property
    def has_cost(self) -> bool:
        """Whether configurations differ in money: a server's price, or an energy that is known."""
        prices = self.prices
        return bool(prices.cloud_per_hour) or (
            bool(prices.energy_per_kwh) and watts_of(self.edge) is not None
        )
