"""Any key of plan or scenario over a list of values: `split=5,10,15`, `servers.count=1,2`.

A key is a short name (SHORT), a path into the scenario (`clients.0.link.quantile`, a group by
number or name), or a path into the plan (`level`, `partition.front_bits`, `plan.kv_bits`).
Values are YAML, so `true`, `null` and numbers mean what they mean in a file, and every point is
checked as a file would be.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_yaml import build_strict, parse_value
from optimizer.artifacts.plan import Plan
from optimizer.errors import ScenarioError
from optimizer.simulate.assemble import Inputs, Overrides, front_splits_at, overridden
from optimizer.simulate.measures import Measures
from optimizer.simulate.scenario import Scenario

# Short names, and the option of the command that each stands for.
SHORT: Final = {
    "clients": "num_clients",
    "servers": "num_servers",
    "link": "link",
    "edge": "edge",
    "cloud": "cloud",
    "workload": "workload",
    "duration": "duration_s",
    "seed": "seed",
}
SHORT_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "clients": int,
    "servers": int,
    "seed": int,
    "duration": (int, float),
}
IN_PARTITION: Final = ("split", "front_bits", "back_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One combination of values, and what it led to."""

    values: dict[str, Any]
    measures: Measures

    @property
    def label(self) -> str:
        """`key=value` of each."""
        return ", ".join(f"{key}={value}" for key, value in self.values.items())


def sweep_points(inputs: Inputs, sweeps: Sequence[str]) -> list[tuple[dict[str, Any], Inputs]]:
    """Every combination of the values that `sweeps` (each `key=a,b,c`) name, with its inputs.

    Raises ScenarioError for a key that is not there, or a value that does not fit.
    """
    axes = []
    for sweep in sweeps:
        key, equals, text = sweep.partition("=")
        values = _values(sweep, text) if text else []
        if not equals or not values or not key.strip():
            raise ScenarioError(f"sweep '{sweep}': write key=value,value,...")
        axes.append([(key.strip(), value) for value in values])
    found = []
    for combination in itertools.product(*axes):
        point = inputs
        for key, value in combination:
            point = with_value(point, key, value)
        found.append((dict(combination), point))
    return found


def _values(sweep: str, text: str) -> list[Any]:
    """The values that stand between the commas, each as YAML. Raises ScenarioError."""
    try:
        return [parse_value(part, source=f"sweep '{sweep}'") for part in text.split(",")]
    except ProfileError as error:
        raise ScenarioError(str(error)) from error


def with_value(inputs: Inputs, key: str, value: Any) -> Inputs:
    """The inputs with one key changed. Raises ScenarioError."""
    if key in SHORT:
        fits: bool = isinstance(value, SHORT_TYPES.get(key, str)) and type(value) is not bool
        if not fits:
            raise ScenarioError(f"sweep {key}={value}: not a value for {key}")
        change = Overrides(**{SHORT[key]: value})
        return replace(inputs, scenario=overridden(inputs.scenario, change))
    head, _, rest = key.partition(".")
    if head == "plan":
        return replace(inputs, plan=_plan_with(inputs.plan, rest, value, key))
    if head in {field.name for field in fields(Scenario)}:
        return replace(inputs, scenario=_scenario_with(inputs.scenario, key, value))
    if head in {field.name for field in fields(Plan)} or key in IN_PARTITION:
        return replace(inputs, plan=_plan_with(inputs.plan, key, value, key))
    raise ScenarioError(
        f"sweep: no key '{key}'; short names are {', '.join(SHORT)}, a scenario has "
        f"{', '.join(f.name for f in fields(Scenario))}, a plan has {', '.join(IN_PARTITION)}, "
        f"{', '.join(f.name for f in fields(Plan))}"
    )


def _scenario_with(scenario: Scenario, key: str, value: Any) -> Scenario:
    data = _listed(asdict(scenario))
    _put(data, key.split("."), value, key)
    try:
        return build_strict(data, Scenario, source=f"sweep {key}={value}")
    except ProfileError as error:
        raise ScenarioError(str(error)) from error


def _plan_with(plan: Plan, key: str, value: Any, whole_key: str) -> Plan:
    data = _listed(asdict(plan))
    _put(data, ["partition", key] if key in IN_PARTITION else key.split("."), value, whole_key)
    if key in ("split", "partition.split"):  # the server begins there, or has all
        data["back_start"] = 0 if plan.back_start == 0 else value
        data["front_layer_bits"] = []
        if isinstance(value, int):  # anything else is refused below
            data["front_splits"] = list(front_splits_at(plan, value))
    if key in ("front_bits", "partition.front_bits"):
        data["front_layer_bits"] = []
    try:
        return build_strict(data, Plan, source=f"sweep {whole_key}={value}")
    except ProfileError as error:
        raise ScenarioError(str(error)) from error


def _put(data: Any, path: Sequence[str], value: Any, key: str) -> None:
    """Set `value` at `path` of nested dicts and lists; list items by number or by their name."""
    for step in path[:-1]:
        data = _enter(data, step, key)
    last = path[-1]
    if not isinstance(data, dict) or last not in data:
        known = ", ".join(data) if isinstance(data, dict) else "nothing"
        raise ScenarioError(f"sweep: no key '{key}'; there is {known}")
    data[last] = value


def _enter(data: Any, step: str, key: str) -> Any:
    if isinstance(data, list):
        for number, item in enumerate(data):
            if step == str(number) or (isinstance(item, dict) and item.get("name") == step):
                return item
    elif isinstance(data, dict) and isinstance(data.get(step), (dict, list)):
        return data[step]
    raise ScenarioError(f"sweep: no key '{key}': nothing below '{step}'")


def _listed(value: Any) -> Any:
    """The value with every tuple as a list, as YAML has them."""
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_listed(item) for item in value]
    return value
