"""One line of a measurement log: what a generation took on a device, or steps on a server.

A record has figures, the plan that they belong to, and the machine that they were taken on. It has
no text, no token id, no address and no name of a user. Times are in seconds, sizes in bytes.
Steps that are alike are kept together, with the median of what they took: the same rows, and as
many tokens before them within a factor of two (`history_class`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias

from hwprofiles.profiles.engines import Engine
from optimizer.artifacts.plan import Plan

MEASURED_FORMAT: Final = 1
# Beyond these a figure is a mistake, or somebody's attempt to spoil a profile.
MOST_SECONDS: Final = 86_400.0
MOST_COUNT: Final = 1 << 31
MOST_BYTES: Final = 1 << 50
MOST_GROUPS: Final = 400
MOST_CHARS: Final = 200
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")

Phase = Literal["prefill", "decode"]
Program = Literal["run", "chat", "api", "bench"]
CodecKernel = Literal["compiled", "numpy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """What the figures were taken on, in the words of a device profile's `platform`."""

    processor: str
    engine: Engine
    num_threads: int
    codec_kernel: CodecKernel

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSteps:
    """Frames of one generation that are alike, seen from the device.

    position: mean tokens before their rows. front_s, encode_s, wire_s, cloud_s, compute_s: median
    seconds of the front, the encoder, the link with both network stacks, all that the server held
    the frame, and its layers. uplink_bytes: mean bytes of a message. batch_sessions: mean sessions
    of the server's batch. server_s: median seconds that the frame kept the server busy: decoding,
    sampling, its share of the batch's layers (0 in older logs). Frames of whole models (level
    "none") have no part beyond the front.
    """

    phase: Phase
    split: int
    level: str
    num_rows: int
    num_steps: int
    position: float
    front_s: float
    encode_s: float
    wire_s: float
    cloud_s: float
    compute_s: float
    uplink_bytes: float
    batch_sessions: float
    server_s: float = 0.0

    def __post_init__(self) -> None:
        _check(self, positive=("num_rows", "num_steps"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLink:
    """What the link did: the median round trip with both stacks, and the uplink's rate (None: no
    message was slowed by its size)."""

    rtt_s: float
    up_bytes_per_s: float | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredJoules:
    """What a sensor of the device measured during an answer, in the words of a profile's `power`:
    `sensor` with what it covers. `busy_s`: of `seconds`, those that the device computed."""

    joules: float
    seconds: float
    busy_s: float
    sensor: str

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredGeneration:
    """One finished generation. tbt_s: the median time between tokens; None below two tokens.

    `peak_memory_bytes`: of the process so far. `date`: a day, no time. energy: None without a
    sensor, and where answers overlap. further_s: from the first token to the last.
    """

    kind: Literal["generation"] = "generation"
    date: str
    program: Program
    machine: MeasuredMachine
    plan: Plan
    prompt_tokens: int
    num_tokens: int
    ttft_s: float
    tbt_s: float | None
    uplink_bytes: int
    downlink_bytes: int
    peak_memory_bytes: int
    steps: tuple[EdgeSteps, ...]
    link: MeasuredLink | None = None
    energy: MeasuredJoules | None = None
    further_s: float | None = None
    format: int = MEASURED_FORMAT

    def __post_init__(self) -> None:
        _check(self, positive=("prompt_tokens", "num_tokens", "peak_memory_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSteps:
    """Steps of a server's batch that are alike: sessions of one split with the same rows each.

    position: mean tokens cached before a session's rows. compute_s: median seconds.
    """

    split: int
    num_sessions: int
    num_rows: int
    num_logits: int
    num_steps: int
    position: float
    compute_s: float

    def __post_init__(self) -> None:
        _check(self, positive=("num_sessions", "num_rows", "num_steps"))
        if self.num_rows % self.num_sessions:
            raise ValueError(
                f"num_rows {self.num_rows}: no multiple of num_sessions {self.num_sessions}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFrames:
    """Frames of one level and number of rows, and the median seconds of decoding one."""

    level: str
    num_rows: int
    num_frames: int
    decode_s: float

    def __post_init__(self) -> None:
        _check(self, positive=("num_rows", "num_frames"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredServing:
    """An interval of serving. sample_s: median seconds of drawing one token (None: none drawn)."""

    kind: Literal["serving"] = "serving"
    date: str
    machine: MeasuredMachine
    plan: Plan
    duration_s: float
    steps: tuple[ServerSteps, ...]
    frames: tuple[DecodedFrames, ...] = ()
    sample_s: float | None = None
    num_samples: int = 0
    peak_memory_bytes: int
    format: int = MEASURED_FORMAT

    def __post_init__(self) -> None:
        _check(self, positive=("peak_memory_bytes",))


Measured: TypeAlias = MeasuredGeneration | MeasuredServing


def history_class(position: float) -> int:
    """Positions of one class differ by less than a factor of two."""
    return int(position).bit_length()


def bare_plan(plan: Plan) -> Plan:
    """The plan without its record of profiles, limits and predictions: names of files are
    nobody's business, and a log needs what ran alone."""
    return replace(plan, profiles=None, limits=None, predicted=None, binding=())


def _check(record: Any, *, positive: tuple[str, ...] = ()) -> None:
    """ValueError for a number out of range, a text that is too long, or no date."""
    for item in fields(record):
        value = getattr(record, item.name)
        if isinstance(value, str):
            if len(value) > MOST_CHARS or not value.isprintable():
                raise ValueError(f"{item.name}: too long, or not printable")
            if item.name == "date" and not _DATE.fullmatch(value):
                raise ValueError(f"date {value!r}: write it as 2026-01-31")
        elif isinstance(value, (int, float)):
            least = 1 if item.name in positive else 0
            most = _most(item.name)
            if not least <= value <= most:
                raise ValueError(f"{item.name} {value:g}: must lie between {least} and {most:g}")
        elif isinstance(value, tuple) and len(value) > MOST_GROUPS:
            raise ValueError(f"{item.name}: more than {MOST_GROUPS} entries")


def _most(name: str) -> float:
    if name.endswith("_s") and not name.endswith("_per_s"):
        return MOST_SECONDS
    return MOST_BYTES if "bytes" in name else MOST_COUNT
