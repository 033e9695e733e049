"""What to simulate: clients, links, load, servers, faults, budgets. Frozen values, strict YAML.

Every key can be swept (`optimizer.simulate.sweep`). Times in seconds, sizes in bytes. Numbers
that describe the software rather than the scenario (bytes of an Open, seconds of a message)
have defaults that were measured on this project's machine; `docs/simulating.md` says how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_yaml import load_strict
from optimizer.cost.codec import LevelCost
from optimizer.errors import ScenarioError

# The standard normal's 95 % point: what ties a lognormal's median and p95 to its sigma.
Z95 = 1.6448536269514722


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in tokens: lognormal through `median` and `p95`; constant when p95 is not given.

    Draws are cut off to [least, most].
    """

    median: float
    p95: float | None = None
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        if self.median < 1 or (self.p95 is not None and self.p95 < self.median):
            raise ScenarioError("lengths need 1 <= median <= p95")
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise ScenarioError("lengths need 1 <= least <= most")

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return 0.0 if self.p95 is None else math.log(self.p95 / self.median) / Z95


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """When requests come.

    poisson: each client at `rate_per_s`, on average. closed: each client asks, reads, thinks
    for `think_s` on average (exponential; `fixed_think` for always the same), and asks again;
    the first question comes after one thought. trace: the rows of a CSV
    (`t_s,prompt_tokens,output_tokens`) dealt round robin to the group's clients, times divided
    by `speed`; lengths come from the rows.
    """

    kind: Literal["poisson", "closed", "trace"]
    rate_per_s: float = 0.0
    think_s: float = 0.0
    fixed_think: bool = False
    trace: str | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "poisson" and self.rate_per_s <= 0:
            raise ScenarioError(
                "poisson arrivals need rate_per_s > 0 (requests a client and second)"
            )
        if self.kind == "closed" and self.think_s < 0:
            raise ScenarioError("closed arrivals need think_s >= 0")
        if self.kind == "trace" and (self.trace is None or self.speed <= 0):
            raise ScenarioError("trace arrivals need the path of a CSV, and speed > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a group's clients reach the servers.

    `mix`: link profiles (shipped names, or paths of .yaml profiles and .csv traces) by weight;
    each client draws one. `shared`: the whole group sits behind one link. `quantile`: instead
    of acting the profile out, hold every number at its value this far from the good end (0.5:
    median; 0.95: rates at their 5 % quantile, round trip at its 95 %). `up_bytes_per_s` and
    `rtt_s` stand in where a trace recorded none. `start_s`: where traces and drawn hours stand
    when the simulation starts; `random_start`: each client's at a further random moment (a
    shared link has none).
    """

    mix: dict[str, float]
    shared: bool = False
    quantile: float | None = None
    up_bytes_per_s: float | None = None
    rtt_s: float | None = None
    random_start: bool = True
    start_s: float = 0.0

    def __post_init__(self) -> None:
        _check_mix("link.mix", self.mix)
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ScenarioError("link.quantile must lie between 0 and 1")
        if self.shared and len(self.mix) != 1:
            raise ScenarioError("a shared link is one link: give its mix one entry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """A group of devices. `devices`: device profiles by weight; each client draws one."""

    name: str
    count: int
    devices: dict[str, float]
    link: Link
    arrivals: Arrivals
    prompt_tokens: Lengths
    output_tokens: Lengths

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ScenarioError(f"clients {self.name}: count must be at least 1")
        _check_mix(f"clients {self.name}: devices", self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The server's scheduler limits; its defaults are the server's own."""

    max_rows: int = 256
    max_sessions: int = 64
    min_prefill_rows: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """One measured batch of the server: `rows` in all, of `sessions` sessions, took `seconds`."""

    rows: int
    sessions: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSteps:
    """Measured batches of a server, in place of the cost model (see `times.MeasuredBack`).

    `points`: prefill of one session (sessions 1) and decode steps (rows equal sessions), each with
    `context_tokens` cached; `attention_s_per_token`: what one more cached token adds for one row.
    `spread`: how single batches lie around these, as factors at evenly spaced quantiles from the
    smallest to the largest; empty: not at all.
    """

    points: tuple[StepPoint, ...]
    context_tokens: int
    attention_s_per_token: float
    spread: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if list(self.spread) != sorted(self.spread) or any(factor <= 0 for factor in self.spread):
            raise ScenarioError("measured steps: spread needs rising factors above zero")
        kinds = {(p.sessions == 1, p.rows == p.sessions) for p in self.points}
        if (True, True) not in kinds or (False, False) in kinds:
            raise ScenarioError(
                "measured steps need one row of one session, and otherwise rows of one session or "
                "one row a session"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """`count` equal servers. `device` names a device profile.

    `kv_memory_bytes` and `max_sessions` bound what admission grants; `block_tokens` is the KV
    block; `kv_bits` None: what the device keeps. `measured`, when given, replaces the cost
    model. `waiting`: how many may wait in line for admission, each for `max_wait_s`; both, like
    the sessions, are what `splitpoint serve` has unless told otherwise.
    """

    device: str
    count: int = 1
    max_sessions: int = 64
    kv_memory_bytes: float = 1 << 30
    kv_bits: int | None = None
    block_tokens: int = 16
    waiting: int = 16
    max_wait_s: float = 2.0
    batch: BatchLimits = field(default_factory=BatchLimits)
    measured: MeasuredSteps | None = None
    cost_per_hour: float = 0.0

    def __post_init__(self) -> None:
        if min(self.count, self.max_sessions, self.block_tokens) < 1 or self.kv_memory_bytes <= 0:
            raise ScenarioError("servers need a count, sessions, blocks and KV memory above zero")
        if self.waiting < 0 or not self.max_wait_s > 0:
            raise ScenarioError("servers need waiting >= 0 and max_wait_s > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A plan in a few keys, for scenarios that bring their own. `model`: a shipped spec."""

    model: str
    split: int
    front_bits: int = 4
    back_bits: int = 8
    kv_bits: int = 8
    level: str = "q3"
    max_tokens: int = 2048
    prefill_chunk: int = 128
    drafting: str = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOutcome:
    """One measured round: so many drafted tokens, and how many of them were right."""

    drafts: int
    accepted: int

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.drafts:
            raise ScenarioError("a draft's outcome needs 0 <= accepted <= drafts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """How well drafts fare: each drafted token is accepted with probability `acceptance`, until the
    first refusal; a draft is found at all in `proposal_share` of the steps. `length`: most drafted
    tokens a step; with `best_length` the edge's own rule picks fewer where they pay better.
    `draft_s`: seconds of the device for each drafted token. `outcomes`: measured rounds, one of
    which is drawn for every step in place of all that: real drafts are longer where they fare
    better, which one chance and one length do not tell."""

    acceptance: float = 0.6
    proposal_share: float = 1.0
    length: int = 4
    best_length: bool = True
    draft_s: float = 0.0
    outcomes: tuple[DraftOutcome, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1 or not 0 <= self.proposal_share <= 1 or self.length < 0:
            raise ScenarioError("drafting needs chances in [0, 1] and length >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """link_outage: nothing passes on the links of `target` (a group's name; all groups when empty).
    server_loss: server number `server` is gone, with all its sessions."""

    kind: Literal["link_outage", "server_loss"]
    at_s: float
    duration_s: float
    target: str = ""
    server: int = 0

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.duration_s <= 0:
            raise ScenarioError("a fault needs at_s >= 0 and duration_s > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a client waits and how it knocks again; defaults are the edge's own."""

    connect_s: float = 10.0
    recover_s: float = 60.0
    first_backoff_s: float = 0.1
    max_backoff_s: float = 5.0
    close_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """Seconds and bytes of our own code around the models. None: as the device profiles have it.

    `edge_message_s`, `cloud_message_s`: each side's network stack, for a round trip; `sample_s`:
    drawing one token. Bytes of an Open and of its answer are those of real messages.
    `connect_round_trips`: what a client spends before its first Open to a server, with the bytes
    of all of them: TCP, TLS 1.3, and HTTP/2's settings, for which gRPC waits (2 without TLS).
    `closed_bytes`: what ends a stream after the edge's close; the device waits for it.
    """

    edge_message_s: float | None = None
    cloud_message_s: float | None = None
    sample_s: float | None = None
    open_bytes: int = 320
    opened_bytes: int = 96
    close_bytes: int = 64
    closed_bytes: int = 64
    connect_round_trips: int = 3
    connect_up_bytes: int = 1_900
    connect_down_bytes: int = 3_000

    def __post_init__(self) -> None:
        if self.connect_round_trips < 0:
            raise ScenarioError("software: connect_round_trips must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a token may take (None: no limit), and which share of tokens has to be in time for the
    budget to be kept."""

    ttft_s: float | None = None
    tbt_s: float | None = None
    share: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ScenarioError("budget.share must lie in (0, 1]")
        if any(limit is not None and limit <= 0 for limit in (self.ttft_s, self.tbt_s)):
            raise ScenarioError("budgets must be above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulation. After `duration_s` no new request starts; those under way may finish within
    `drain_s`. `deployment` is used when no plan is given. `deadline_tbt_s` switches the edge's
    controller on, as `run --deadline-tbt` does; `adaptive_chunks` False cuts prompts as planned."""

    name: str
    clients: tuple[Clients, ...]
    servers: Servers
    description: str = ""
    duration_s: float = 600.0
    drain_s: float = 60.0
    seed: int = 0
    deployment: Deployment | None = None
    levels: tuple[LevelCost, ...] = ()
    drafting: Drafting = field(default_factory=Drafting)
    deadline_tbt_s: float | None = None
    adaptive_chunks: bool = True
    faults: tuple[Fault, ...] = ()
    patience: Patience = field(default_factory=Patience)
    software: Software = field(default_factory=Software)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not self.clients or len({group.name for group in self.clients}) < len(self.clients):
            raise ScenarioError("a scenario needs groups of clients, each with its own name")
        if not 0 < self.duration_s < math.inf or not 0 <= self.drain_s < math.inf:
            raise ScenarioError("a scenario needs duration_s > 0 and drain_s >= 0, both finite")
        names = {group.name for group in self.clients}
        for fault in self.faults:
            if fault.target and fault.target not in names:
                raise ScenarioError(
                    f"fault on '{fault.target}': groups are {', '.join(sorted(names))}"
                )
            if fault.kind == "server_loss" and not 0 <= fault.server < self.servers.count:
                raise ScenarioError(
                    f"fault on server {fault.server}: there are {self.servers.count}"
                )

    @property
    def num_clients(self) -> int:
        """Clients of all groups."""
        return sum(group.count for group in self.clients)


def load_scenario(path: Path) -> Scenario:
    """Read a scenario; ScenarioError names file, key and allowed keys. Paths of traces and profiles
    inside are relative to the file's folder where a file of that name is there."""
    try:
        return load_strict(path, Scenario)
    except (ProfileError, ScenarioError) as error:
        message = str(error)
        prefix = "" if str(path) in message else f"{path}: "
        raise ScenarioError(f"{prefix}{message}") from error


def _check_mix(where: str, mix: dict[str, float]) -> None:
    if (
        not mix
        or any(not 0 <= weight < math.inf for weight in mix.values())
        or not sum(mix.values())
    ):
        raise ScenarioError(f"{where} needs weights, none negative, not all zero")
