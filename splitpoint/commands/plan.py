"""`splitpoint plan`: choose split, precisions, compression and sequence length for two machines."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from hwprofiles.providers.table import CPU
from optimizer.errors import PlanError
from splitpoint.commands.limit_options import LimitOptions
from splitpoint.commands.measure_options import CheckOptions
from splitpoint.commands.option_groups import given_options, with_options
from splitpoint.commands.plan_options import (
    ChoiceOptions,
    DeploymentOptions,
    EvidenceOptions,
    PlanOutputOptions,
)
from splitpoint.commands.price_options import PriceOptions, priced
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json

NOTICED_DROP: Final = 0.10  # of the device's speed, from which a plan says that it does not last

if TYPE_CHECKING:
    from hwprofiles.profiles.device import DeviceProfile
    from optimizer.artifacts.plan import ModelRef, Plan
    from optimizer.cost.link import LinkPoint
    from optimizer.cost.money import Prices
    from optimizer.search.planner import Found, Planner
    from optimizer.search.problem import Problem


@with_options()
def plan(
    context: typer.Context,
    deployment: DeploymentOptions,
    choices: ChoiceOptions,
    limits: LimitOptions,
    evidence: EvidenceOptions,
    price: PriceOptions,
    output: PlanOutputOptions,
    check: CheckOptions,
) -> None:
    """Plan a deployment: the best configuration within the limits, and why."""
    from hwprofiles.links.catalog import load_link
    from optimizer.cost.link import link_at
    from optimizer.search.segments import in_segments
    from splitpoint.plan_inputs import model_ref

    deployment.check()
    if check.check_log is not None:
        check.report(check.check_log, deployment, evidence, price.prices(), as_json=output.as_json)
        return
    choices.check()
    price.check(choices)
    limits.limits()  # bad usage shows before anything loads
    asked = given_options(context)
    choices = priced(choices, price, asked)
    edge, cloud = _machines(deployment)
    prices = price.counted(edge)
    profile = load_link(deployment.link)
    reference = model_ref(deployment.model)
    point = link_at(profile, epsilon=deployment.epsilon)
    with long_work("planning") as work:
        work.stage("all configurations")
        planner, found = _solved(
            _problem(reference, edge, cloud, choices, limits, evidence, prices),
            point,
            choices,
            asked,
        )
    lifted = limits.without_defaults(asked) if found is None else None
    if lifted is not None:
        fastest = _fastest(choices, asked)
        freer, found = _solved(
            _problem(reference, edge, cloud, fastest, lifted, evidence, prices),
            point,
            fastest,
            asked,
        )
        if found is not None:
            planner = freer
            _tell_lifted(limits, asked)
    if found is None:
        raise _infeasible(planner, point, as_json=output.as_json)
    decided = _decided(planner, point, found, reference, deployment, output.out)
    decided = in_segments(decided, choices.segments)
    if output.out is not None:
        output.out.parent.mkdir(parents=True, exist_ok=True)
        output.out.write_text(decided.to_yaml(), encoding="utf-8")
    _show(planner, point, found, decided, output)
    if output.plot is not None:
        _plot(planner, point, found, output.plot)


def _solved(
    problem: Problem, point: LinkPoint, choices: ChoiceOptions, asked: Collection[str]
) -> tuple[Planner, Found | None]:
    """The best plan within the limits, and who found it.

    Fronts have small blocks of weights. Where nothing fits so, they have large ones, which take
    less memory and lose more quality. Where nothing fits so either, layers are read from storage,
    and the least time between tokens is looked for, unless another objective was asked for.
    """
    from optimizer.search.planner import Planner
    from optimizer.search.streamed import with_streaming

    if choices.stream_weights == "on":
        problem = with_streaming(problem)
    planner = Planner(problem)
    found = planner.solve(point)
    if found is None:
        quality = problem.quality.in_large_blocks()
        larger = Planner(replace(problem, weight_blocks="large", quality=quality))
        if (fitting := larger.solve(point)) is not None:
            return larger, fitting
        if choices.may_stream(problem.edge, is_cut=choices.segments > 1):
            objective = _fastest(choices, asked).wanted()
            streaming = Planner(replace(with_streaming(problem), objective=objective))
            if (fitting := streaming.solve(point)) is not None:
                return streaming, fitting
    return planner, found


def _fastest(choices: ChoiceOptions, asked: Collection[str]) -> ChoiceOptions:
    """The choices with the least time between tokens as objective, where none was asked for."""
    return choices if "objective" in asked else replace(choices, objective="tbt")


def _tell_lifted(limits: LimitOptions, asked: Collection[str]) -> None:
    values = {"max_tbt": f"{limits.max_tbt} s between tokens"}
    values["max_ttft"] = f"{limits.max_ttft} s to the first token"
    lifted = {name: value for name, value in values.items() if name not in asked}
    options = " and ".join("--" + name.replace("_", "-") for name in lifted)
    typer.echo(
        f"splitpoint: no plan keeps the default limits here ({', '.join(lifted.values())}), "
        f"so they were lifted; set {options} to plan with others",
        err=True,
    )


def _machines(deployment: DeploymentOptions) -> tuple[DeviceProfile, DeviceProfile]:
    """The two profiles; a warning where one was measured for the other role."""
    from hwprofiles.profiles.catalog import load_device
    from hwprofiles.profiles.device import CODEC_KERNEL, IN_NUMPY

    machines = load_device(deployment.edge), load_device(deployment.cloud)
    for found, role in zip(machines, ("edge", "cloud"), strict=True):
        if role not in found.roles:
            typer.echo(
                f"splitpoint: {found.name} is a profile of {', '.join(found.roles)}, "
                f"with other kernels than the {role} runs: what is predicted for it means little",
                err=True,
            )
        if found.platform.versions.get(CODEC_KERNEL) == IN_NUMPY:
            typer.echo(
                f"splitpoint: {found.name} was measured without the codec's compiled kernel, and "
                "the plan counts that: install the kernel ('splitpoint doctor' says how) and "
                "profile again",
                err=True,
            )
    _tell_lasting(machines[0])
    _say_provider(machines[0])
    return machines


def _say_provider(edge: DeviceProfile) -> None:
    """On stderr, where the edge's figures are not of the CPU's kernels, which every edge has."""
    provider = edge.platform.provider
    if provider is None:
        typer.echo(
            f"splitpoint: {edge.name} has figures of {edge.platform.engine}, and an edge runs ONNX "
            "Runtime: expect it to be several times slower than planned; measure it there with "
            "'splitpoint profile device'",
            err=True,
        )
    elif provider != CPU.name:
        basis = "measured with" if edge.measured else "assumed for"
        typer.echo(
            f"splitpoint: the edge's figures in {edge.name} are {basis} {provider}: it takes "
            f"{provider} by itself where its onnxruntime has it, and elsewhere is slower than "
            "planned",
            err=True,
        )


def _tell_lasting(edge: DeviceProfile) -> None:
    """A line where the device's speed in short bursts is not the one that lasts."""
    load = None if edge.power is None else edge.power.sustained
    if load is None or load.share >= 1 - NOTICED_DROP:
        return
    after = "" if load.drop_after_s is None else f" after {load.drop_after_s:.0f} s"
    typer.echo(
        f"splitpoint: {edge.name} keeps {load.share:.0%} of its speed{after} of work: times "
        "between tokens count with that, the time to the first token with its full speed",
        err=True,
    )


def _problem(
    reference: ModelRef,
    edge: DeviceProfile,
    cloud: DeviceProfile,
    choices: ChoiceOptions,
    limits: LimitOptions,
    evidence: EvidenceOptions,
    prices: Prices,
) -> Problem:
    """The question that the options put to the optimizer."""
    from optimizer.search.mixed import mixed_fronts
    from optimizer.search.request import make_problem
    from splitpoint.plan_inputs import drafts_of, quality_of, sensitivity_of

    given = evidence.sensitivity
    measured = None if given is None else sensitivity_of(reference, given)
    return make_problem(
        reference.geometry,
        edge,
        cloud,
        limits=limits.limits(),
        quality=quality_of(reference, evidence.certificate or [], measured),
        mixed_fronts=[] if measured is None else mixed_fronts(reference.geometry, measured.losses),
        objective=choices.wanted(),
        max_tokens=choices.max_tokens,
        answer_tokens=choices.answer_tokens,
        splits=choices.splits(),
        levels=choices.level,
        drafts=drafts_of(evidence.draft, evidence.ngram_acceptance, evidence.tokens_per_round_trip),
        exact_front=choices.exact_front,
        back_from=choices.held_from(),
        slack=choices.slack / 100,
        prefill=choices.place(),
        prices=prices,
    )


def _decided(
    planner: Planner,
    point: LinkPoint,
    found: Found,
    reference: ModelRef,
    deployment: DeploymentOptions,
    out: Path | None,
) -> Plan:
    """The best cell as a plan, with its predictions and what binds it."""
    from optimizer.artifacts.prediction import ProfilesUsed
    from optimizer.search.explain import binding_limits
    from optimizer.search.to_plan import plan_of

    return plan_of(
        found.grid,
        found.cell,
        model=reference,
        profiles=ProfilesUsed(
            edge=_from_plan(deployment.edge, out),
            cloud=_from_plan(deployment.cloud, out),
            link=_from_plan(deployment.link, out),
            epsilon=deployment.epsilon,
            edge_provider=planner.problem.edge.platform.provider or CPU.name,
        ),
        binding=binding_limits(planner, point, found),
    )


def _from_plan(name: str, out: Path | None) -> str:
    """A profile as the plan names it: a file by its path from the plan's folder, so that the plan
    can be used from any working folder."""
    if out is None or not Path(name).is_file():
        return name
    return Path(os.path.relpath(name, out.parent)).as_posix()


def _infeasible(planner: Planner, point: LinkPoint, *, as_json: bool) -> PlanError:
    """Print what would make the limits possible; returns the error that ends the command."""
    from optimizer.search.explain import relaxations
    from splitpoint.views import plan_view

    needed = relaxations(planner.grid(point))
    if as_json:
        print_json(plan_view.infeasible_json(needed))
    else:
        plan_view.print_relaxations(needed)
    return PlanError(plan_view.infeasible_line(needed))


def _show(
    planner: Planner, point: LinkPoint, found: Found, decided: Plan, output: PlanOutputOptions
) -> None:
    """Print the plan and why it is the best."""
    from optimizer.cost.money import has_measured_watts, watts_of
    from optimizer.search.alternatives import alternatives
    from optimizer.search.explain import explain
    from splitpoint.views import pareto_view, plan_view

    why = explain(planner, point, found)
    beside = alternatives(planner, point, found)
    front = pareto_view.pareto_rows(found.grid) if output.pareto else None
    if output.as_json:
        found_json = plan_view.plan_json(decided, why, front, beside=beside)
        if planner.problem.has_cost:
            found_json["prices"] = {
                **asdict(planner.problem.prices),
                "edge_watts": watts_of(planner.problem.edge),
                "edge_watts_measured": has_measured_watts(planner.problem.edge),
            }
        print_json(found_json)
        return
    plan_view.print_plan(decided, why, objective=planner.problem.objective, beside=beside)
    if front is not None:
        pareto_view.print_pareto(front)
    if output.out is not None:
        typer.echo(str(output.out))


def _plot(planner: Planner, point: LinkPoint, found: Found, path: Path) -> None:
    from splitpoint.views.plan_plot import draw_plan

    path.parent.mkdir(parents=True, exist_ok=True)
    draw_plan(planner, point, found, path)
