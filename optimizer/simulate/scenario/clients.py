"""The clients of a scenario: groups of devices, their links, and when they ask for what.

Times are in seconds, sizes in bytes, lengths in tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from optimizer.artifacts.prefill import PrefillPlace
from optimizer.errors import ScenarioError
from optimizer.policy.move_transport import MoveChoice

# What happens when an answer outgrows the device's cache (`optimizer.policy.kv`).
ContextChoice: TypeAlias = Literal["refuse", "handover"]

# The standard normal's 95 % point: what ties a lognormal's median and p95 to its sigma.
Z95: Final = 1.6448536269514722


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Lengths in tokens: lognormal through `median` and `p95`, or constant without `p95`.

    Draws are clipped to [least, most]. Raises ScenarioError for an order that makes no sense.
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

    poisson: each client asks at `rate_per_s` on average. closed: each client asks, reads, thinks
    for `think_s` on average, and asks again. The time to think is exponential, or constant with
    `fixed_think`, and comes before the first question too. trace: the rows of a CSV
    (`t_s,prompt_tokens,output_tokens`) are dealt to the group's clients in turn, with their times
    divided by `speed`. The lengths come from the rows. Raises ScenarioError for missing numbers.
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

    `mix`: link profiles by weight, as shipped names or as paths of .yaml profiles and .csv traces.
    Each client draws one. `shared`: the whole group uses one link. `quantile`: the link is held at
    this quantile, counted from the good end, instead of varying as the profile says (0.5: the
    median; 0.95: rates at their 5 % quantile and the round trip at its 95 %). `up_bytes_per_s` and
    `rtt_s` fill in what a trace did not record. `start_s`: how far traces and drawn hours have run
    when the simulation starts. `random_start`: each client starts at a random moment after that;
    a shared link does not. Raises ScenarioError for values out of range.
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
    """A group of `count` clients. `devices`: device profiles by weight; each client draws one.

    `prefill`: where prompts are computed (`optimizer.policy.prefill_place`); None: where the plan
    says. `context`: "refuse" cuts requests to the plan's max_tokens; "handover" moves the split
    when they outgrow it (`optimizer.simulate.moving`); None: as the deployment says, else "refuse".
    `move_by`: what the server gets then (`optimizer.policy.move_transport`). `same_beginning`:
    whose prompts begin with the same block, by which a door chooses the server: those of one
    client, of the whole group, or no two.
    Raises ScenarioError without clients or without weights.
    """

    name: str
    count: int
    devices: dict[str, float]
    link: Link
    arrivals: Arrivals
    prompt_tokens: Lengths
    output_tokens: Lengths
    prefill: PrefillPlace | None = None
    context: ContextChoice | None = None
    move_by: MoveChoice = "auto"
    same_beginning: Literal["client", "group", "none"] = "client"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ScenarioError(f"clients {self.name}: count must be at least 1")
        _check_mix(f"clients {self.name}: devices", self.devices)


def _check_mix(where: str, mix: dict[str, float]) -> None:
    if (
        not mix
        or any(not 0 <= weight < math.inf for weight in mix.values())
        or not sum(mix.values())
    ):
        raise ScenarioError(f"{where} needs weights, none negative, not all zero")
