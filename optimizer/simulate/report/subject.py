"""What was simulated, in words: the model, its split, the devices, the links and the load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from optimizer.artifacts.plan import Plan
from optimizer.simulate.scenario import Arrivals, Clients, Lengths, Scenario


def subject_of(scenario: Scenario, plan: Plan) -> dict[str, str]:
    """Each thing by its name, in the order in which people ask for them."""
    many = len(scenario.clients) > 1

    def of_groups(words: Mapping[str, str]) -> str:
        """One line where all groups are the same, else each group's with its name."""
        if not many or len(set(words.values())) == 1:
            return next(iter(words.values()))
        return "; ".join(f"{name}: {text}" for name, text in words.items())

    groups = scenario.clients
    found = {"model": plan.model.id, "split": _split(plan)}
    found["devices"] = of_groups({g.name: _mix(g.devices, g.count) for g in groups})
    if not plan.edge_is_whole:
        servers = scenario.servers
        scaling = servers.scaling
        most = "" if scaling is None else f" to {scaling.most:,}"
        found["servers"] = f"{servers.count:,}{most} x {_name(servers.device)}"
    found["link"] = of_groups({group.name: _link(group) for group in groups})
    found["load"] = of_groups({group.name: _load(group) for group in groups})
    return found


def _split(plan: Plan) -> str:
    layers, split = plan.model.geometry.num_layers, plan.partition.split
    bits = plan.partition
    if plan.edge_is_whole:
        return f"none: all {layers} layers on the device at {bits.front_bits} bits"
    front = f"at {bits.front_bits} bits" if not plan.front_layer_bits else "of mixed bits"
    return (
        f"after layer {split} of {layers}: {split} on the device {front}, {layers - split} on the "
        f"server at {bits.back_bits} bits; level {plan.level}, drafting {plan.drafting}"
    )


def _mix(weights: Mapping[str, float], count: int) -> str:
    """`18 x laptop`, or with several kinds their shares."""
    names = [name for name, weight in weights.items() if weight > 0]
    if len(names) == 1:
        return f"{count:,} x {_name(names[0])}"
    return f"{count:,}: {_shares(weights)}"


def _shares(weights: Mapping[str, float]) -> str:
    total = sum(weights.values())
    return ", ".join(
        f"{weight / total:.0%} {_name(name)}" for name, weight in weights.items() if weight > 0
    )


def _link(group: Clients) -> str:
    link = group.link
    names = [name for name, weight in link.mix.items() if weight > 0]
    text = _name(names[0]) if len(names) == 1 else _shares(link.mix)
    if link.shared:
        text += ", shared by all"
    if link.quantile is not None:
        text += f", held at its {link.quantile:.0%} quantile"
    return text


def _load(group: Clients) -> str:
    if group.arrivals.kind == "trace":  # which has the lengths too
        return _arrivals(group.arrivals)
    prompt, output = _length(group.prompt_tokens), _length(group.output_tokens)
    return f"{_arrivals(group.arrivals)}; prompts {prompt}, answers {output} tokens"


def _length(lengths: Lengths) -> str:
    about = f"{lengths.median:,.0f}"
    return about if lengths.p95 is None else f"{about} (p95 {lengths.p95:,.0f})"


def _arrivals(arrivals: Arrivals) -> str:
    if arrivals.kind == "poisson":
        return f"each asks {3600 * arrivals.rate_per_s:,.3g} times an hour"
    if arrivals.kind == "closed":
        return f"each asks again after {arrivals.think_s:g} s"
    return f"times and lengths of {_name(arrivals.trace or '')}"


def _name(profile: str) -> str:
    """A shipped profile's name, or a file's without its folder: reports are passed on."""
    return Path(profile).name
