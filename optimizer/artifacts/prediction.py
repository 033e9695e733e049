"""What a plan remembers of how it was decided: profiles, limits, and each prediction.

Plain records that travel in `plan.yaml`; `optimizer.search` fills them in, the edge compares its
memory with them, and people read them. SI units; a limit of None is no limit.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from optimizer.errors import PlanError

QualitySource = Literal["certified", "partly assumed", "assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfilesUsed:
    """Names of the profiles a plan was made from, and of the link's quantile.

    `epsilon`: the link was taken as it is at least as good as with probability 1 - epsilon.
    """

    edge: str
    cloud: str
    link: str
    epsilon: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the plan had to keep. `prompt_tokens` is the prompt that TTFT is promised for;
    `num_sessions` sessions share the cloud's memory and its batch."""

    edge_memory_bytes: float | None = None
    cloud_memory_per_session_bytes: float | None = None
    cloud_memory_bytes: float | None = None
    max_ttft_s: float | None = None
    max_tbt_s: float | None = None
    max_quality_drop_pct: float | None = None
    prompt_tokens: int = 128
    num_sessions: int = 1

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            lowest_is_zero = name == "max_quality_drop_pct"
            if value is not None and not (value > 0 or (lowest_is_zero and value == 0)):
                raise PlanError(f"limit {name}: {value} must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeMemoryParts:
    """Peak bytes of the edge process at the longest sequence, part by part.

    They add up to the total but for `load_peak_bytes`, which replaces the sum where loading
    needs more than running. The runtime counts tokenizer and codec tables; `codec_bytes` are the
    pages of the codec's predictions that the tokens touch.
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
    """Where one decode step (with drafting: one round) spends its time, in seconds. `sample_s` is
    the edge's own sampling, where it holds the whole model."""

    front_s: float
    encode_s: float
    wire_s: float
    cloud_s: float
    draft_s: float = 0.0
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What the plan promises.

    `ttft_s`: of a prompt of `Limits.prompt_tokens`, over a connection that stands; `first_ttft_s`:
    of a client's first request, which makes the connection (TCP, TLS, HTTP/2; None in plans that
    were made before this was predicted). `tbt_s`: half way through the answer.
    `longest_tbt_s`: the slowest step up to `max_tokens`; the limit on TBT is on this one.
    `longest_tokens`: the longest sequence this configuration could have within the limits.
    `uplink_bytes_per_token` counts the wire's own bytes. `cloud_s_per_token`: seconds of the
    server a token, its batch shared among `Limits.num_sessions`; `cloud_cost_ratio`: how many
    times more running the whole model there would take (None: the server is not needed).
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
