"""The plan: which layers run where, at which precision, and how long a session may be.

`splitpoint plan` writes a plan, and so does `splitpoint build` from its flags. The bundle holds it,
and edge and cloud load it. It is a YAML file. An unknown or missing key is an error that names the
file, the key and the keys allowed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from hwprofiles.errors import ProfileError
from hwprofiles.providers.table import CPU
from hwprofiles.schema.strict_yaml import load_strict
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.prediction import Limits, Predicted, ProfilesUsed
from optimizer.artifacts.prefill import PREFILL_PLACES, PrefillPlace
from optimizer.errors import ModelError, PlanError

PLAN_FORMAT: Final = 2
READABLE_FORMATS: Final = (1, 2)  # 1 has none of the fields from `drafting` on
FRONT_BITS: Final = (4, 8, 16, 32)
BACK_BITS: Final = (8, 16, 32)
KV_BITS: Final = (8, 16, 32)
LAYER_BITS: Final = (4, 8)  # of one layer in a front of mixed precision
DRAFTING: Final = ("off", "ngram", "head", "cloud", "auto")
WeightBlocks = Literal["small", "large"]  # how many of the front's weights share a scale
# Left out where there are none: earlier versions then read the plan.
NEWER_LIMITS: Final = ("max_joules_per_token", "max_cost_per_million")
NEWER_PREDICTIONS: Final = ("energy", "cost", "lasting")
WEIGHT_BLOCKS: Final = ("small", "large")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One-point split compression (arXiv:2511.04002): one split, one precision on each side.

    The edge runs the embedding and layers [0, split) with weights of `front_bits` bits. The cloud
    runs layers [split, L), the final norm and the head with `back_bits`. With `split` 0 the edge
    has only the embedding. With `split` L it has the whole model, and no server is needed. Raises
    PlanError.
    """

    split: int
    front_bits: int
    back_bits: int

    def __post_init__(self) -> None:
        if self.split < 0:
            raise PlanError(f"split {self.split} is negative")
        if self.front_bits not in FRONT_BITS:
            raise PlanError(f"front bits {self.front_bits}: choose one of {FRONT_BITS}")
        if self.back_bits not in BACK_BITS:
            raise PlanError(f"back bits {self.back_bits}: choose one of {BACK_BITS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Which model this is: a name for people, a hash of its files, and its geometry."""

    id: str
    sha256: str
    geometry: ModelGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided about one deployment.

    `back_start` is the first layer whose weights the cloud holds, at most `split`. A server with a
    lower `back_start` serves edges of different splits at once. `max_tokens` limits prompt and
    output together; both sides size their KV cache by it. `level` names the default level of the
    codec's ladder. `exact_front` asks 4- and 8-bit front kernels to compute in float32. One row at
    a time and many rows at once then give the same hidden states, which drafting and replay need.
    `drafting` says who proposes tokens ahead of the cloud. `front_layer_bits` has the weight bits
    of each front layer where they differ, and `partition.front_bits` is then the smallest of them.
    Where it is empty, all layers have `partition.front_bits`. `front_splits` has the splits that a
    session may move between: rising, the last one `partition.split`. The front is cut there, into
    segments that are loaded and dropped apart. Empty: the split stays. `prefill` says where a
    prompt's rows are computed (`optimizer.policy.prefill_place`); other places than the edge need a
    server that holds every layer. `weight_blocks` says how many of the front's weights share a
    scale (`optimizer.cost.front_kernels.block_size`): "small" is 32, as in every plan of earlier
    versions, "large" is more and takes less memory. `streamed_layers`: how many of the front's
    layers are not kept in memory but read from storage in every pass. Where it is not 0, the front
    is cut at every layer, and the device may stream fewer or more of them. The first layer stays in
    memory, and so does a last one that has the head beside it. `max_positions` lets positions run
    on beyond the cache: tokens may leave the front's cache, and those that stay keep their
    positions (`optimizer.policy.kv`). 0: positions are places in the cache.

    The other fields are a record: the profiles and limits that `splitpoint plan` used, what it
    predicted, and the limits that bind. A plan from flags has none of them. Raises PlanError.
    """

    model: ModelRef
    partition: Partition
    back_start: int
    kv_bits: int
    level: str
    max_tokens: int
    prefill_chunk: int
    exact_front: bool = False
    drafting: str = "off"
    front_layer_bits: tuple[int, ...] = ()
    front_splits: tuple[int, ...] = ()
    prefill: PrefillPlace = "edge"
    weight_blocks: WeightBlocks = "small"
    streamed_layers: int = 0
    max_positions: int = 0
    profiles: ProfilesUsed | None = None
    limits: Limits | None = None
    predicted: Predicted | None = None
    binding: tuple[str, ...] = ()
    format: int = PLAN_FORMAT

    def __post_init__(self) -> None:
        geometry = self.model.geometry
        if self.format not in READABLE_FORMATS:
            known = " and ".join(map(str, READABLE_FORMATS))
            raise PlanError(f"plan format {self.format}: this version reads {known}")
        if self.partition.split > geometry.num_layers:
            raise PlanError(
                f"split {self.partition.split}: the model has {geometry.num_layers} layers"
            )
        if not 0 <= self.back_start <= self.partition.split:
            raise PlanError(
                f"back start {self.back_start}: must lie between 0 and the split "
                f"{self.partition.split}"
            )
        if self.kv_bits not in KV_BITS:
            raise PlanError(f"KV bits {self.kv_bits}: choose one of {KV_BITS}")
        if not 1 <= self.max_tokens <= geometry.context_length:
            raise PlanError(
                f"max tokens {self.max_tokens}: must lie between 1 and the model's context of "
                f"{geometry.context_length}"
            )
        if self.prefill_chunk < 1:
            raise PlanError(f"prefill chunk {self.prefill_chunk}: must be at least 1")
        if self.drafting not in DRAFTING:
            raise PlanError(f"drafting {self.drafting!r}: choose one of {', '.join(DRAFTING)}")
        if self.weight_blocks not in WEIGHT_BLOCKS:
            known = " and ".join(WEIGHT_BLOCKS)
            raise PlanError(f"weight blocks {self.weight_blocks!r}: this version reads {known}")
        self._check_layer_bits()
        self._check_front_splits()
        self._check_prefill()
        self._check_streaming()
        self._check_positions()
        if self.format == 1 and self._has_newer_fields():
            raise PlanError(
                "plan format 1 has no drafting, layer bits, prefill, streaming, profiles or "
                "predictions"
            )

    def _check_layer_bits(self) -> None:
        bits = self.front_layer_bits
        if not bits:
            return
        if len(bits) != self.partition.split:
            raise PlanError(
                f"front layer bits: {len(bits)} values for a front of {self.partition.split} layers"
            )
        if not set(bits) <= set(LAYER_BITS):
            raise PlanError(f"front layer bits {sorted(set(bits))}: choose among {LAYER_BITS}")
        if self.partition.front_bits != min(bits):
            raise PlanError(
                f"front bits {self.partition.front_bits}: must be the smallest of the front "
                f"layer bits, {min(bits)}"
            )

    def _check_front_splits(self) -> None:
        splits = self.front_splits
        if not splits:
            return
        if len(splits) > self.model.geometry.num_layers:
            raise PlanError(
                f"{len(splits)} front splits: the model has {self.model.geometry.num_layers} layers"
            )
        named = ", ".join(map(str, splits))
        if list(splits) != sorted(set(splits)) or splits[0] < 1:
            raise PlanError(f"front splits {named}: must rise, from 1 on")
        if splits[-1] != self.partition.split:
            raise PlanError(
                f"front splits {named}: the last must be the split, {self.partition.split}"
            )
        if self.edge_is_whole:
            raise PlanError(f"front splits {named}: the cloud must hold a layer of its own")
        if self.back_start > 0:
            raise PlanError(
                f"front splits {named}: a split moves only where the cloud holds every layer "
                f"(back start 0, not {self.back_start})"
            )

    def _check_prefill(self) -> None:
        if self.prefill not in PREFILL_PLACES:
            raise PlanError(f"prefill {self.prefill!r}: choose one of {', '.join(PREFILL_PLACES)}")
        if self.prefill != "edge" and self.back_start > 0:
            raise PlanError(
                f"prefill {self.prefill}: the server holds only the layers from {self.back_start} "
                "on; it needs all of them (back start 0)"
            )

    def _check_streaming(self) -> None:
        most = self.most_streamed_layers
        if not 0 <= self.streamed_layers <= most:
            raise PlanError(
                f"streamed layers {self.streamed_layers}: of {self.partition.split} layers on the "
                f"edge, 0 to {most} can be read from storage in every pass"
            )
        if self.streamed_layers and self.front_splits:
            raise PlanError("streamed layers: not in a front whose split moves (front splits)")

    def _check_positions(self) -> None:
        most = self.model.geometry.context_length
        if self.max_positions and not self.max_tokens <= self.max_positions <= most:
            raise PlanError(
                f"max positions {self.max_positions}: must lie between max tokens, "
                f"{self.max_tokens}, and the model's context of {most}"
            )

    def _has_newer_fields(self) -> bool:
        records = (self.profiles, self.limits, self.predicted)
        return (
            self.drafting != "off"
            or self.prefill != "edge"
            or self.weight_blocks != "small"
            or self.streamed_layers > 0
            or self.max_positions > 0
            or bool(self.front_layer_bits or self.front_splits or self.binding)
            or any(record is not None for record in records)
        )

    @property
    def edge_is_whole(self) -> bool:
        """Whether the edge holds the whole model, head and all, and needs no server."""
        return self.partition.split == self.model.geometry.num_layers

    @property
    def layer_bits(self) -> tuple[int, ...]:
        """Weight bits of each front layer."""
        return self.front_layer_bits or (self.partition.front_bits,) * self.partition.split

    @property
    def splits(self) -> tuple[int, ...]:
        """The splits that the device has segments for, rising: one where the split stays."""
        return self.front_splits or (self.partition.split,)

    @property
    def segment_ends(self) -> tuple[int, ...]:
        """Where the front's files end, in layers: a file for each of `splits`, and for each layer
        where some of them are streamed."""
        if self.streamed_layers:
            return tuple(range(1, self.partition.split + 1))
        return self.splits

    @property
    def most_streamed_layers(self) -> int:
        """How many layers can be streamed: all but the first, and a last one with the head."""
        return max(self.partition.split - 1 - int(self.edge_is_whole), 0)

    def capacity(self, split: int) -> int:
        """Most tokens of a sequence at one of `splits`, or at 0.

        The cache has the same bytes at every split, so fewer layers hold more tokens. At split 0
        the device holds none of them; the model's context is the limit.
        """
        longest = self.model.geometry.context_length
        if split == 0:
            return longest
        return min(longest, self.max_tokens * self.partition.split // split)

    def front_kv_bytes(self) -> int:
        """Bytes of the edge's KV cache at the longest sequence, at any of `splits`."""
        return self.model.geometry.device_kv_bytes(
            num_layers=self.partition.split, num_tokens=self.max_tokens, kv_bits=self.kv_bits
        )

    def to_yaml(self) -> str:
        """The plan as YAML text that `load_plan` reads back to an equal value.

        Defaults of the newest keys are left out: earlier versions then read the plan too.
        """
        values = {key: value for key, value in asdict(self).items() if value is not None}
        if not self.front_splits:  # earlier versions read the plan then
            del values["front_splits"]
        if self.prefill == "edge":
            del values["prefill"]
        if self.profiles is not None and self.profiles.edge_provider == CPU.name:
            del values["profiles"]["edge_provider"]
        if self.weight_blocks == "small":
            del values["weight_blocks"]
        if not self.streamed_layers:
            del values["streamed_layers"]
        if not self.max_positions:
            del values["max_positions"]
        if self.limits is not None and self.limits.quantile == 0.5:
            del values["limits"]["quantile"]
        for part, names in (("limits", NEWER_LIMITS), ("predicted", NEWER_PREDICTIONS)):
            for name in names:
                if part in values and values[part][name] is None:
                    del values[part][name]
        return yaml.safe_dump(_plain(values), sort_keys=False)


def load_plan(path: Path) -> Plan:
    """Read a plan. Raises PlanError naming the file, the key and the keys allowed."""
    try:
        return load_strict(path, Plan)
    except (ProfileError, PlanError, ModelError) as error:
        message = str(error)
        prefix = "" if str(path) in message else f"{path}: "
        raise PlanError(f"{prefix}{message}") from error


def _plain(value: Any) -> Any:
    """The value with lists for tuples at every depth: YAML's safe dumper takes no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
