"""A whole scenario: clients, servers, faults and a budget, read from strict YAML.

Every key can be swept (`optimizer.simulate.sweep`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_yaml import load_strict
from optimizer.cost.codec import LevelCost
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.errors import PlanError, ScenarioError
from optimizer.policy.retry import RetryPolicy
from optimizer.simulate.scenario.clients import Clients
from optimizer.simulate.scenario.servers import Servers
from optimizer.simulate.scenario.software import Deployment, DraftingScenario, Software

# What the edge can be told to wait for, and the simulator does not act out.
NOT_SIMULATED: Final = ("attempt_s", "step_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that breaks at `at_s` for `duration_s`.

    link_outage: nothing passes on the links of group `target` (empty: of all groups). server_loss:
    server number `server` dies with all its sessions, and a new process replaces it afterwards.
    Where the number of servers scales, another one starts in its place at once, and there is no
    `duration_s`. Raises ScenarioError for times out of range.
    """

    kind: Literal["link_outage", "server_loss"]
    at_s: float
    duration_s: float | None = None
    target: str = ""
    server: int = 0

    def __post_init__(self) -> None:
        if self.at_s < 0 or (self.duration_s is not None and self.duration_s <= 0):
            raise ScenarioError("a fault needs at_s >= 0 and duration_s > 0")

    @property
    def end_s(self) -> float:
        """When it is over; infinite without a duration."""
        return math.inf if self.duration_s is None else self.at_s + self.duration_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The seconds that a first and a further token may take (None: no limit).

    The budget is kept when at least `first_share` of the first tokens and at least `further_share`
    of the further tokens are in time, each against its own limit. `share` stands for one of the
    two that is not given (`ttft_share`, `tbt_share`).
    """

    ttft_s: float | None = None
    tbt_s: float | None = None
    share: float = 0.95
    ttft_share: float | None = None
    tbt_share: float | None = None

    def __post_init__(self) -> None:
        for name in ("share", "ttft_share", "tbt_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ScenarioError(f"budget.{name} must lie in (0, 1]")
        if any(limit is not None and limit <= 0 for limit in (self.ttft_s, self.tbt_s)):
            raise ScenarioError("budgets must be above zero")

    @property
    def first_share(self) -> float:
        """The share of first tokens that has to be in time."""
        return self.share if self.ttft_share is None else self.ttft_share

    @property
    def further_share(self) -> float:
        """The share of further tokens that has to be in time."""
        return self.share if self.tbt_share is None else self.tbt_share

    def kept_by(self, first_in_time: float, further_in_time: float) -> bool:
        """Whether these shares of tokens in time keep both limits."""
        return first_in_time >= self.first_share and further_in_time >= self.further_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One simulation.

    After `duration_s` no new request starts; requests in progress may finish within `drain_s`.
    `deployment` is used when no plan is given. `deadline_tbt_s` switches the edge's controller on,
    as `run --deadline-tbt` does. Without `adaptive_chunks` every chunk has the plan's length.
    `patience` is the edge's own retry policy. `prices`: what the work for a token costs.
    Raises ScenarioError for keys that do not fit.
    """

    name: str
    clients: tuple[Clients, ...]
    servers: Servers
    description: str = ""
    duration_s: float = 600.0
    drain_s: float = 60.0
    seed: int = 0
    deployment: Deployment | None = None
    levels: tuple[LevelCost, ...] = ()
    drafting: DraftingScenario = field(default_factory=DraftingScenario)
    deadline_tbt_s: float | None = None
    adaptive_chunks: bool = True
    faults: tuple[Fault, ...] = ()
    patience: RetryPolicy = field(default_factory=RetryPolicy)
    software: Software = field(default_factory=Software)
    budget: Budget = field(default_factory=Budget)
    prices: Prices = NO_PRICES

    def __post_init__(self) -> None:
        if not self.clients or len({group.name for group in self.clients}) < len(self.clients):
            raise ScenarioError("a scenario needs groups of clients, each with its own name")
        if self.may_lose and (self.drafting.flights or self.drafting.ahead):
            key = "flights" if self.drafting.flights else "ahead"
            raise ScenarioError(f"drafting.{key}: frames ahead of answers know no lost server")
        if not 0 < self.duration_s < math.inf or not 0 <= self.drain_s < math.inf:
            raise ScenarioError("a scenario needs duration_s > 0 and drain_s >= 0, both finite")
        for key in NOT_SIMULATED:
            if getattr(self.patience, key) != getattr(RetryPolicy(), key):
                raise ScenarioError(f"patience.{key} is not simulated: leave it out")
        names = {group.name for group in self.clients}
        for fault in self.faults:
            if fault.target and fault.target not in names:
                raise ScenarioError(
                    f"fault on '{fault.target}': groups are {', '.join(sorted(names))}"
                )
            self._check_time(fault)
            if fault.kind == "server_loss" and not 0 <= fault.server < self.servers.count:
                raise ScenarioError(
                    f"fault on server {fault.server}: there are {self.servers.count}"
                )

    def _check_time(self, fault: Fault) -> None:
        """ScenarioError for a fault without an end, and for a server that is lost twice."""
        is_final = fault.kind == "server_loss" and self.servers.scaling is not None
        if not is_final and fault.duration_s is None:
            raise ScenarioError(f"a fault ({fault.kind}) needs duration_s")
        if is_final and fault.duration_s is not None:
            raise ScenarioError(
                "server_loss: another server starts within scaling.start_delay_s, so leave out "
                "duration_s"
            )
        losses = [one.server for one in self.faults if one.kind == "server_loss"]
        if is_final and losses.count(fault.server) > 1:
            raise ScenarioError(f"server {fault.server} is lost twice: another one replaces it")

    @property
    def may_lose(self) -> bool:
        """Whether a session may lose its server: by a fault, or because the server drains."""
        has_losses = any(fault.kind == "server_loss" for fault in self.faults)
        return has_losses or self.servers.scaling is not None

    @property
    def sends_ahead(self) -> bool:
        """Whether drafted tokens may leave in frames ahead of an answer."""
        drafting = self.drafting
        if drafting.ahead is not None:
            return drafting.ahead
        measured = bool(drafting.outcomes or drafting.flights)
        return drafting.best_length and not (self.may_lose or measured)

    @property
    def num_clients(self) -> int:
        """Clients of all groups."""
        return sum(group.count for group in self.clients)


def load_scenario(path: Path) -> Scenario:
    """Read a scenario. Raises ScenarioError naming the file, the key and the allowed keys.

    A path inside it (a trace, a profile) is relative to the file's folder if it exists there.
    """
    try:
        return load_strict(path, Scenario)
    except (ProfileError, PlanError, ScenarioError) as error:
        message = str(error)
        prefix = "" if str(path) in message else f"{path}: "
        raise ScenarioError(f"{prefix}{message}") from error
