"""The device profile: what one machine can hold and how fast its real kernels run.

A profile is a YAML file. Every number names a source; a source is a measurement (command and
date) or a data sheet (URL). Data-sheet rates carry an efficiency factor, and the factor names
its own source. `hwprofiles.profiles.catalog` finds and loads profiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from hwprofiles.errors import ProfileError
from hwprofiles.profiles.checks import check_kernel, check_part, check_rising, walk
from hwprofiles.profiles.engines import EDGE_ENGINES, Engine
from hwprofiles.profiles.errors import ErrorSpreads
from hwprofiles.profiles.power import SustainedLoad
from hwprofiles.providers.table import ProviderName

SourceKind = Literal["measured", "data_sheet", "derived", "assumed"]
Compute = Literal["int8", "fp32", "fp16", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where numbers come from: a command and a date, or a URL.

    `measured`: taken on that machine. `data_sheet`: the maker's or a reviewer's page.
    `derived`: computed from other numbers as `note` says. `assumed`: a stated guess.
    """

    kind: SourceKind
    reference: str
    date: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number in SI units, where it comes from, and how much of it real code gets.

    `spread` is (p90 - p10) / median over the repeats of a measurement.
    """

    value: float
    source: str
    efficiency: float = 1.0
    efficiency_source: str | None = None
    spread: float | None = None

    @property
    def effective(self) -> float:
        """What a plan may count on: the value times its efficiency."""
        return self.value * self.efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """`usable_bytes` is what a process of ours may take; `runtime_base_bytes` what it takes
    before any model is loaded (interpreter, libraries). `base_file_bytes`, where measured: the part
    of it that is pages of files, libraries' code above all, which a process may give back."""

    total_bytes: Figure
    usable_bytes: Figure
    runtime_base_bytes: Figure
    bandwidth_bytes_per_s: Figure
    base_file_bytes: Figure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePoint:
    """One-row matrix work: weight bytes per second, in matrices of `matrix_bytes`, when a step
    walks `working_set_bytes` in all.

    Small working sets live in caches, so the rate falls as the set grows; small matrices leave
    prefetching less to do, so it falls again as they shrink.
    """

    working_set_bytes: float
    bytes_per_s: float
    matrix_bytes: float = 0.0
    spread: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """Matrix work on `num_rows` rows at once, in matrices of `num_weights` weights:
    2 * rows * weights floating-point operations.

    `working_set_bytes`: how much a step walks in all, as for one row: a few rows are as bound by
    reading weights as one. 0: not known; then walking them at the one-row rate is the floor.
    """

    num_rows: int
    flops_per_s: float
    num_weights: float = 0.0
    working_set_bytes: float = 0.0
    spread: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeCurve:
    """One-row rates, in rising order of matrix size, then of working set."""

    source: str
    points: tuple[DecodePoint, ...]
    efficiency: float = 1.0
    efficiency_source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCurve:
    """Many-row rates, in rising order of matrix size, then of working set, then of rows."""

    source: str
    points: tuple[BatchPoint, ...]
    efficiency: float = 1.0
    efficiency_source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPoint:
    """What one whole layer of `width` takes beyond its matrices and its attention over the cache,
    with `num_rows` rows of `num_sessions` sessions: norms, activation, waking threads, starting
    operators, and what they cost each other in the caches. Below zero where a layer runs its
    matrices faster than they run alone. `working_set_bytes`: the weights of all layers that were
    timed; beyond the caches the rest is another one. 0: not known."""

    width: int
    num_sessions: int
    num_rows: int
    seconds: float
    working_set_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The kernels for one weight precision. `dispatch_s` is paid for every matrix.

    `lookup_s_per_element` is what the embedding's look-up takes for each element of a row: a table
    is unpacked slowly. `layers`: what is left of whole layers, in rising order of width, working
    set, sessions and rows; where it is empty the device's overheads stand in.
    """

    weight_bits: int
    compute: Compute
    dispatch_s: float
    source: str
    decode: DecodeCurve
    batch: BatchCurve
    lookup_s_per_element: float = 0.0
    layers: tuple[LayerPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionPoint:
    """Attention of `num_rows` new tokens over n cached and new ones, one layer:
    `fixed_s` + 4 * rows * heads * head_dim * n / `flops_per_s`, while the caches of all layers
    take `working_set_bytes`."""

    num_rows: int
    fixed_s: float
    flops_per_s: float
    working_set_bytes: float = 0.0
    spread: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionKernel:
    """The attention kernel for one precision of the KV cache.

    `width` is heads * head_dim of the measurement, `packed_width` counts keys and values too. The
    `fixed_s` of many rows is copying and rotating all of them, and grows with `packed_width`, in
    old files with `width`. 0: not known, so not scaled.
    """

    kv_bits: int
    source: str
    points: tuple[AttentionPoint, ...]
    width: int = 0
    packed_width: int = 0
    efficiency: float = 1.0
    efficiency_source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """Time outside matrices and attention.

    `step_s`: per forward pass. `layer_s`: per layer of a single row, what is left of a whole
    layer when its matrices and attention are taken off: norms, activation, waking threads.
    `elementwise_bytes_per_s`: the same for many rows, counted as
    4 * (4 * hidden + 3 * intermediate) bytes a row and layer.

    Where measured: `session_s`, a server's bookkeeping for each session of a batch and step;
    `sample_s_per_logit`, drawing a token; `message_s`, this side's half of what the network stack
    takes for a message and its answer on loopback; `pause_s`, what a step takes longer after a
    pause, in which caches turn to other things; `after_pause`, the same as a factor, in old files.
    """

    step_s: Figure
    layer_s: Figure
    elementwise_bytes_per_s: Figure
    session_s: Figure | None = None
    sample_s_per_logit: Figure | None = None
    message_s: Figure | None = None
    after_pause: Figure | None = None
    pause_s: Figure | None = None


# In `Platform.versions`: what the codec was timed in, "compiled" or IN_NUMPY. Old files have none.
CODEC_KERNEL: Final = "codec_kernel"
IN_NUMPY: Final = "numpy"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpeed:
    """What one kind of codec takes on rows of `hidden_size`: seconds a frame and an element."""

    kind: str
    hidden_size: int
    source: str
    encode_fixed_s: float
    encode_s_per_element: float
    decode_fixed_s: float
    decode_s_per_element: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Electrical power and heat, where known.

    `idle_watts` and `load_watts` are what `sensor` measured on the idle machine and in the last
    third of the sustained load. `max_watts` is the most that it draws.
    """

    idle_watts: Figure | None = None
    max_watts: Figure | None = None
    thermal: str = ""
    load_watts: Figure | None = None
    sensor: str = ""
    sustained: SustainedLoad | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What the numbers were taken on, or are meant for."""

    processor: str
    num_cores: int
    num_threads: int
    operating_system: str
    engine: Engine
    accelerator: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def provider(self) -> ProviderName | None:
        """The execution provider that an edge's figures are of; None for an engine of a server."""
        return next((name for name, engine in EDGE_ENGINES.items() if engine == self.engine), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """One machine. `measured` is true when its rates were taken there by the profiler. `errors`:
    how far predictions are off; None in older files, for which a default is assumed."""

    name: str
    summary: str
    roles: tuple[Literal["edge", "cloud"], ...]
    measured: bool
    platform: Platform
    memory: Memory
    kernels: tuple[Kernel, ...]
    attention: tuple[AttentionKernel, ...]
    overheads: Overheads
    sources: dict[str, Source]
    storage_read_bytes_per_s: Figure | None = None
    codec: tuple[CodecSpeed, ...] = ()
    power: Power | None = None
    warnings: tuple[str, ...] = ()
    errors: ErrorSpreads | None = None

    def __post_init__(self) -> None:
        _check(self)

    @property
    def pause_slowdown(self) -> float:
        """Times that a step takes after a pause; at least 1, and 1 where `pause_s` is known."""
        figure = None if self.overheads.pause_s is not None else self.overheads.after_pause
        return 1.0 if figure is None else max(1.0, figure.effective)

    @property
    def pause_s(self) -> float:
        """Seconds that a step takes longer after a pause; 0 where that was not measured."""
        figure = self.overheads.pause_s
        return 0.0 if figure is None else figure.effective

    @property
    def sustained_share(self) -> float:
        """Share of these rates that is left in minutes of work; 1 where that was not measured."""
        load = None if self.power is None else self.power.sustained
        return 1.0 if load is None else load.share

    def kernel(self, weight_bits: int, *, compute: Compute | None = None) -> Kernel:
        """The kernel for `weight_bits`, of the asked compute type if there is one.

        Without `compute`, the first listed. ProfileError when the precision is not profiled.
        """
        found = [kernel for kernel in self.kernels if kernel.weight_bits == weight_bits]
        exact = [kernel for kernel in found if compute in (None, kernel.compute)]
        if not found:
            known = sorted({kernel.weight_bits for kernel in self.kernels})
            raise ProfileError(
                f"device profile {self.name}: no kernel for {weight_bits}-bit weights; "
                f"it has {known}"
            )
        return (exact or found)[0]

    def attention_kernel(self, kv_bits: int) -> AttentionKernel:
        """The attention kernel for `kv_bits`; ProfileError when it is not profiled."""
        for kernel in self.attention:
            if kernel.kv_bits == kv_bits:
                return kernel
        known = sorted(kernel.kv_bits for kernel in self.attention)
        raise ProfileError(
            f"device profile {self.name}: no attention kernel for a {kv_bits}-bit KV cache; "
            f"it has {known}"
        )


def _check(profile: DeviceProfile) -> None:
    """Every source named exists and says enough; every number is one a plan can use."""
    where = f"device profile {profile.name}"
    for key, source in profile.sources.items():
        if source.kind == "measured" and not source.date:
            raise ProfileError(f"{where}: source {key!r} is measured but has no date")
        if source.kind == "data_sheet" and not source.reference.startswith("http"):
            raise ProfileError(f"{where}: source {key!r} is a data sheet but not a URL")
    if not profile.kernels or not profile.attention:
        raise ProfileError(f"{where}: needs at least one kernel and one attention kernel")
    if profile.memory.usable_bytes.value > profile.memory.total_bytes.value:
        raise ProfileError(f"{where}: usable memory exceeds total memory")
    for path, part in walk(profile):
        check_part(f"{where}: {path}", part, profile.sources)
    for kernel in profile.kernels:
        check_kernel(f"{where}: kernel of {kernel.weight_bits} bits", kernel)
    for attention in profile.attention:
        rows = [(point.num_rows, point.working_set_bytes) for point in attention.points]
        check_rising(f"{where}: attention of {attention.kv_bits} bits", "points", rows)
