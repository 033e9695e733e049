"""From a plan, a scenario and a command's options to what is simulated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from optimizer.artifacts.plan import ModelRef, Partition, Plan, load_plan
from optimizer.artifacts.specs import load_spec
from optimizer.cost.levels import DEFAULT_LEVELS, EXTRA_LEVELS
from optimizer.errors import ModelError, ScenarioError
from optimizer.simulate.scenario import (
    Arrivals,
    Clients,
    Deployment,
    Lengths,
    Link,
    Scenario,
    Servers,
    load_scenario,
)
from optimizer.simulate.setup import Setup, load_setup

T = TypeVar("T")

DEFAULT_LINK: Final = "wifi"
DEFAULT_EDGE: Final = "raspberry-pi-5-8gb"
DEFAULT_CLOUD: Final = "l4-24gb"
DEFAULT_OUTPUT_TOKENS: Final = 128
DEFAULT_THINK_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What a command's options change in a scenario. None: as it is.

    `num_clients` keeps the shares of the groups; `link`, `edge` and `workload` hold for all groups.
    """

    link: str | None = None
    edge: str | None = None
    cloud: str | None = None
    num_clients: int | None = None
    num_servers: int | None = None
    workload: str | None = None
    duration_s: float | None = None
    seed: int | None = None
    budget_ttft_s: float | None = None
    budget_tbt_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A scenario and the plan it is simulated with. `folder`: where its relative paths start."""

    scenario: Scenario
    plan: Plan
    folder: Path | None = None

    def setup(self) -> Setup:
        """Load everything that they name. Raises ScenarioError.

        Levels cost what the planner says, unless the scenario lists its own.
        """
        levels = {level.name: level for level in (*DEFAULT_LEVELS, *EXTRA_LEVELS)}
        return load_setup(self.scenario, self.plan, levels, folder=self.folder)


def plan_of(deployment: Deployment) -> Plan:
    """The plan that a scenario's own few keys describe. Raises ScenarioError, PlanError."""
    try:
        spec = load_spec(deployment.model)
    except ModelError as error:
        raise ScenarioError(str(error)) from error
    needs_all = (
        deployment.prefill != "edge"
        or deployment.context == "handover"
        or bool(deployment.front_splits)
    )
    return Plan(
        model=ModelRef(id=spec.hub_id, sha256="0" * 64, geometry=spec.geometry),
        partition=Partition(
            split=deployment.split,
            front_bits=deployment.front_bits,
            back_bits=deployment.back_bits,
        ),
        back_start=0 if needs_all else deployment.split,
        kv_bits=deployment.kv_bits,
        level=deployment.level,
        max_tokens=deployment.max_tokens,
        prefill_chunk=deployment.prefill_chunk,
        drafting=deployment.drafting,
        prefill=deployment.prefill,
        front_splits=deployment.front_splits,
    )


def default_scenario(plan: Plan) -> Scenario:
    """One client that asks, reads for a while and asks again, on the plan's own profiles."""
    used = plan.profiles
    prompt = plan.limits.prompt_tokens if plan.limits is not None else 128
    prompt = max(1, min(prompt, plan.max_tokens // 2))
    group = Clients(
        name="clients",
        count=1,
        devices={DEFAULT_EDGE if used is None else used.edge: 1.0},
        link=Link(mix={DEFAULT_LINK if used is None else used.link: 1.0}),
        arrivals=Arrivals(kind="closed", think_s=DEFAULT_THINK_S),
        prompt_tokens=Lengths(median=prompt),
        output_tokens=Lengths(median=min(DEFAULT_OUTPUT_TOKENS, plan.max_tokens - prompt)),
    )
    return Scenario(
        name=plan.model.id,
        clients=(group,),
        servers=Servers(device=DEFAULT_CLOUD if used is None else used.cloud),
    )


def overridden(scenario: Scenario, overrides: Overrides) -> Scenario:
    """The scenario with a command's options in it."""
    groups = scenario.clients
    if overrides.num_clients is not None:
        groups = with_clients(scenario, overrides.num_clients).clients
    if overrides.link is not None:
        groups = tuple(
            replace(group, link=replace(group.link, mix={overrides.link: 1.0})) for group in groups
        )
    if overrides.edge is not None:
        groups = tuple(replace(group, devices={overrides.edge: 1.0}) for group in groups)
    if overrides.workload is not None:
        # The trace's rows are dealt among all clients, so groups take turns at one list.
        if len(groups) > 1:
            raise ScenarioError("a workload replaces one group's arrivals, this scenario has more")
        arrivals = Arrivals(kind="trace", trace=overrides.workload)
        groups = (replace(groups[0], arrivals=arrivals),)
    servers = scenario.servers
    if overrides.cloud is not None:
        servers = replace(servers, device=overrides.cloud)
    if overrides.num_servers is not None:
        servers = replace(servers, count=overrides.num_servers)
    budget = scenario.budget
    return replace(
        scenario,
        clients=groups,
        servers=servers,
        duration_s=_given(overrides.duration_s, scenario.duration_s),
        seed=_given(overrides.seed, scenario.seed),
        budget=replace(
            budget,
            ttft_s=_given(overrides.budget_ttft_s, budget.ttft_s),
            tbt_s=_given(overrides.budget_tbt_s, budget.tbt_s),
        ),
    )


def with_servers(scenario: Scenario, num_servers: int) -> Scenario:
    """The scenario with `num_servers` servers, where their number scales at least so many.

    ScenarioError where a fault names a further one.
    """
    servers = scenario.servers
    scaling = servers.scaling
    if scaling is not None:
        scaling = replace(scaling, most=max(scaling.most, num_servers))
    return replace(scenario, servers=replace(servers, count=num_servers, scaling=scaling))


def with_clients(scenario: Scenario, num_clients: int) -> Scenario:
    """The scenario with `num_clients` clients; each group keeps its share, and at least one."""
    if num_clients < len(scenario.clients):
        raise ScenarioError(f"{num_clients} clients for {len(scenario.clients)} groups")
    total, left, groups = scenario.num_clients, num_clients, []
    for index, group in enumerate(scenario.clients):
        after = len(scenario.clients) - index - 1
        count = left if not after else round(num_clients * group.count / total)
        count = max(1, min(count, left - after))
        groups.append(replace(group, count=count))
        left -= count
    return replace(scenario, clients=tuple(groups))


def front_splits_at(plan: Plan, split: int) -> tuple[int, ...]:
    """Where the plan's front would be cut if it ended at `split`."""
    if not plan.front_splits or split in (0, plan.model.geometry.num_layers):
        return ()
    return (*(at for at in plan.front_splits if at < split), split)


def _given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _with_found_profiles(plan: Plan, folder: Path) -> Plan:
    """The plan with its profiles' files found: a relative path starts at the plan's `folder`.

    Plans of earlier versions wrote paths as they were typed, so the working folder comes second.
    """
    used = plan.profiles
    if used is None:
        return plan

    def found(name: str) -> str:
        local = folder / name
        return str(local) if local.is_file() else name

    profiles = replace(used, edge=found(used.edge), cloud=found(used.cloud), link=found(used.link))
    return replace(plan, profiles=profiles)


def load_inputs(plan_file: Path | None, scenario_file: Path | None, overrides: Overrides) -> Inputs:
    """Read what a command was given. A plan wins over the scenario's own deployment.

    Raises ScenarioError, PlanError.
    """
    scenario = None if scenario_file is None else load_scenario(scenario_file)
    if plan_file is not None:
        plan = _with_found_profiles(load_plan(plan_file), plan_file.parent)
    elif scenario is not None and scenario.deployment is not None:
        plan = plan_of(scenario.deployment)
    else:
        raise ScenarioError(f"{scenario_file} has no deployment: give a plan.yaml as well")
    if scenario is None:
        scenario = default_scenario(plan)
    elif plan_file is not None:
        scenario = replace(scenario, deployment=None)
    return Inputs(
        scenario=overridden(scenario, overrides),
        plan=plan,
        folder=None if scenario_file is None else scenario_file.parent,
    )
