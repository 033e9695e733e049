"""What a plan records of how it was decided: profiles, limits and predictions.

`optimizer.search` writes these records into `plan.yaml`. The edge compares its memory with them,
and people read them. SI units; None as a limit means no limit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Literal

from hwprofiles.providers.table import ProviderName
from optimizer.errors import PlanError

QualitySource = Literal["certified", "partly assumed", "assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilesUsed:
    """Names of the profiles that a plan was made from.

    `epsilon`: with probability 1 - epsilon the link is at least as good as the plan assumes.
    `edge_provider`: the execution provider that the edge's profile has figures of
    (`hwprofiles.providers.table`).
    """

    edge: str
    cloud: str
    link: str
    epsilon: float = 0.5
    edge_provider: ProviderName = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits that the plan keeps.

    `max_ttft_s` holds for a prompt of `prompt_tokens`. `num_sessions` sessions share the cloud's
    memory and its batch. `max_joules_per_token`: of the device, as its sensor measures them.
    `max_cost_per_million`: money for a million tokens. `quantile`: TTFT, TBT, the device's memory,
    energy and cost keep their limits with this probability, by the errors that predictions are
    known to have; 0.5: the predictions themselves keep them. Raises PlanError for a limit that is
    not positive.
    """

    edge_memory_bytes: float | None = None
    cloud_memory_per_session_bytes: float | None = None
    cloud_memory_bytes: float | None = None
    max_ttft_s: float | None = None
    max_tbt_s: float | None = None
    max_quality_drop_pct: float | None = None
    prompt_tokens: int = 128
    num_sessions: int = 1
    quantile: float = 0.5
    max_joules_per_token: float | None = None
    max_cost_per_million: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise PlanError(f"limit quantile: {self.quantile} must lie between 0 and 1")
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            lowest_is_zero = name == "max_quality_drop_pct"
            if value is not None and not (value > 0 or (lowest_is_zero and value == 0)):
                raise PlanError(f"limit {name}: {value} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeMemoryParts:
    """Peak bytes of the edge process at the longest sequence, part by part.

    The total is their sum without `load_peak_bytes`, or `load_peak_bytes` where loading needs more
    than running. `runtime_bytes` includes the tokenizer and the codec's tables. `codec_bytes` are
    the pages of the codec's predictions that the tokens touch.
    """

    runtime_bytes: float
    weight_bytes: float
    embedding_bytes: float
    kv_bytes: float
    workspace_bytes: float
    load_peak_bytes: float
    draft_bytes: float = 0.0
    codec_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParts:
    """The parts of the time of one decode step (with drafting: of one round), in seconds.

    `draft_s`: guessing, and the time in which the tokens of frames ahead come behind the answer.
    `sample_s` is the edge's own sampling, where it holds the whole model.
    """

    front_s: float
    encode_s: float
    wire_s: float
    cloud_s: float
    draft_s: float = 0.0
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PredictedRange:
    """Quantiles of what will be measured; the prediction is `p50`."""

    p10: float
    p50: float
    p90: float

    def at(self, quantile: float) -> float:
        """Any quantile: log-normal on either side of the median, each side with its own width."""
        if self.p10 <= 0:
            return self.p50
        z = NormalDist().inv_cdf(quantile)
        end = self.p90 if z > 0 else self.p10
        return float(self.p50 * (end / self.p50) ** (abs(z) / NormalDist().inv_cdf(0.9)))

    def covers(self, measured: float, *, share: float = 0.9) -> bool:
        """Whether `measured` is within the middle `share` of the range: p5 to p95 for 0.9."""
        tail = (1 - share) / 2
        return self.at(tail) <= measured <= self.at(1 - tail)

    def around(self, prediction: float) -> PredictedRange:
        """The range of another prediction that is off by the same factors."""
        ratio = prediction / self.p50 if self.p50 > 0 else 1.0
        return PredictedRange(self.p10 * ratio, prediction, self.p90 * ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedRanges:
    """How sure a plan's predictions are (`optimizer.cost.uncertainty`)."""

    ttft_s: PredictedRange
    tbt_s: PredictedRange
    longest_tbt_s: PredictedRange
    edge_memory_bytes: PredictedRange


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedEnergy:
    """Joules that the device's sensor will measure (`optimizer.cost.energy`), waiting included:
    until the first token of the planned prompt, between tokens, and for an answer of
    `answer_tokens`. `sensor`: whose watts the profile has."""

    first_token_joules: PredictedRange
    joules_per_token: PredictedRange
    joules_per_answer: PredictedRange
    answer_tokens: int
    sensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedCost:
    """Money at these prices: for a million tokens (`optimizer.cost.money`), and for an answer of
    `answer_tokens`, prompt and waiting included (None: energy has a price and no sensor)."""

    per_million_tokens: PredictedRange
    per_answer: PredictedRange | None
    answer_tokens: int
    cloud_per_hour: float | None
    energy_per_kwh: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedLasting:
    """Tokens a second in answers that take longer than `after_s`."""

    tokens_per_s: PredictedRange
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the plan predicts.

    - `ttft_s`: of a prompt of `Limits.prompt_tokens`, over an open connection.
    - `first_ttft_s`: of a client's first request, which opens the connection (TCP, TLS, HTTP/2).
      None in plans that are older than this prediction.
    - `tbt_s`: half way through the answer. `longest_tbt_s`: the slowest step up to `max_tokens`;
      the limit on TBT is compared with this one.
    - `longest_tokens`: the longest sequence that this configuration could have within the limits.
    - `uplink_bytes_per_token`: with the wire's own bytes.
    - `cloud_s_per_token`: the server's seconds for a token, where `Limits.num_sessions` sessions
      share its batch. `cloud_cost_ratio`: how many times more the whole model would take there
      (None: the server is not needed).
    - `ranges`: quantiles of what will be measured; None in plans that are older than they are.
    - `energy`: None where the profile has no measured watts: no sensor. `cost`: None without
      prices. `lasting`: None where the profile measured no long load.
    """

    edge_memory_bytes: float
    ttft_s: float
    tbt_s: float
    longest_tbt_s: float
    uplink_bytes_per_token: float
    quality_drop_pct: float
    quality_source: QualitySource
    cloud_s_per_token: float
    cloud_cost_ratio: float | None
    cloud_memory_per_session_bytes: float
    cloud_memory_bytes: float
    longest_tokens: int
    tokens_per_round: float
    edge_memory: EdgeMemoryParts
    step: StepParts
    first_ttft_s: float | None = None
    ranges: PredictedRanges | None = None
    energy: PredictedEnergy | None = None
    cost: PredictedCost | None = None
    lasting: PredictedLasting | None = None
