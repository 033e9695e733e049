"""`splitpoint simulate`: what latency a deployment would have, before anything is deployed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from splitpoint.commands.choices import completed, device_profiles, link_profiles
from splitpoint.commands.option_groups import JsonOption, with_options
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json
from splitpoint.views.sizes import MOST_TBT_S, MOST_TTFT_S, check_seconds

if TYPE_CHECKING:
    from optimizer.simulate.assemble import Inputs, Overrides
    from optimizer.simulate.budget import BudgetView
    from optimizer.simulate.fleet import FleetSize
    from optimizer.simulate.measures import Measures
    from optimizer.simulate.report.files import Findings

AUTO: Final = "auto"
MOST_DIGITS: Final = 6  # of a number of servers


@dataclass(frozen=True, kw_only=True)
class ScenarioOptions:
    """What is simulated: each option replaces the scenario's own value."""

    PANEL: ClassVar = "What to simulate"

    scenario: Annotated[
        Path | None, typer.Option(help="Clients, servers, load, faults: a YAML file.")
    ] = None
    link: Annotated[
        str | None,
        typer.Option(
            help="Link: a name, legs (wifi+internet), figures (rtt=40ms,up=10,down=50), or a file.",
            autocompletion=completed(link_profiles),
        ),
    ] = None
    clients: Annotated[int | None, typer.Option(min=1, help="How many clients.")] = None
    servers: Annotated[
        str | None,
        typer.Option(help="How many servers; auto: the fewest that keep the budget.", metavar="N"),
    ] = None
    workload: Annotated[
        Path | None,
        typer.Option(help="Requests from a CSV (t_s, prompt_tokens, output_tokens)."),
    ] = None
    duration: Annotated[float | None, typer.Option(min=0.001, help="Simulated seconds.")] = None
    edge: Annotated[
        str | None,
        typer.Option(
            help="Device profile of all clients, instead of the plan's.",
            autocompletion=completed(device_profiles),
        ),
    ] = None
    cloud: Annotated[
        str | None,
        typer.Option(
            help="Device profile of the servers, instead of the plan's.",
            autocompletion=completed(device_profiles),
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same result.")] = None

    def num_servers(self) -> int | None:
        """None: the scenario's, or as many as are needed. BadParameter for no number."""
        if self.servers in (None, AUTO):
            return None
        given = str(self.servers)
        if not given.isdecimal() or not int(given[:MOST_DIGITS]) >= 1 or len(given) > MOST_DIGITS:
            raise typer.BadParameter("must be 1 or more, or auto", param_hint="--servers")
        return int(given)


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """The latency that is wanted, and advice on how to get it."""

    PANEL: ClassVar = "Budget"

    budget_ttft: Annotated[
        float | None, typer.Option(min=0.000001, help="Seconds the first token may take.")
    ] = None
    budget_tbt: Annotated[
        float | None, typer.Option(min=0.000001, help="Seconds every further token may take.")
    ] = None
    advice: Annotated[
        bool, typer.Option(help="With a budget: how many clients, which link, what to change.")
    ] = True

    @property
    def wants_advice(self) -> bool:
        """Whether there is a budget to give advice on."""
        return self.advice and (self.budget_ttft is not None or self.budget_tbt is not None)

    def check(self) -> None:
        """BadParameter for times that were meant in milliseconds."""
        check_seconds(self.budget_ttft, "--budget-ttft", MOST_TTFT_S)
        check_seconds(self.budget_tbt, "--budget-tbt", MOST_TBT_S)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How often the simulation runs, over which values, in how many processes."""

    PANEL: ClassVar = "Runs"

    replications: Annotated[int, typer.Option(min=1, help="Runs with different seeds, pooled.")] = 1
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes for them (default: one a core).")
    ] = None
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="key=a,b,c: any key of plan or scenario; may be given several times."),
    ] = None


@with_options()
def simulate(
    scene: ScenarioOptions,
    budget: BudgetOptions,
    runs: RunOptions,
    plan: Annotated[
        Path | None, typer.Argument(help="The plan; may be left out when the scenario has one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, JSON, CSV and PNGs.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Simulate clients, links and servers, with the real scheduler and controller."""
    if plan is None and scene.scenario is None:
        raise typer.BadParameter("give a plan.yaml, or a --scenario that has a deployment")
    budget.check()
    from optimizer.simulate.assemble import load_inputs
    from optimizer.simulate.report.files import write_files

    inputs = load_inputs(plan, scene.scenario, _overrides(scene, budget))
    fleet = _fleet(inputs, runs) if scene.servers == AUTO else None
    findings = replace(_findings(_sized(inputs, fleet), budget, runs), fleet=fleet)
    if out is not None:
        write_files(findings, out)
    if as_json:
        print_json(findings.to_json())
        return
    from splitpoint.views.simulation_tables import print_findings

    print_findings(findings)
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}")


def _overrides(scene: ScenarioOptions, budget: BudgetOptions) -> Overrides:
    from optimizer.simulate.assemble import Overrides

    return Overrides(
        link=scene.link,
        edge=scene.edge,
        cloud=scene.cloud,
        num_clients=scene.clients,
        num_servers=scene.num_servers(),
        workload=None if scene.workload is None else str(scene.workload),
        duration_s=scene.duration,
        seed=scene.seed,
        budget_ttft_s=budget.budget_ttft,
        budget_tbt_s=budget.budget_tbt,
    )


def _fleet(inputs: Inputs, runs: RunOptions) -> FleetSize:
    """The fewest servers that keep the budget."""
    from optimizer.simulate.fleet import fleet_size

    with long_work("looking for the fewest servers") as work:
        return fleet_size(
            inputs,
            replications=runs.replications,
            processes=runs.processes,
            progress=lambda count: work.stage(f"{count:,} servers"),
        )


def _sized(inputs: Inputs, fleet: FleetSize | None) -> Inputs:
    from optimizer.simulate.assemble import with_servers

    if fleet is None:
        return inputs
    return replace(inputs, scenario=with_servers(inputs.scenario, fleet.num_servers))


def _findings(inputs: Inputs, budget: BudgetOptions, runs: RunOptions) -> Findings:
    """Simulate the scenario and every point of the sweep; measure them; ask for advice."""
    from optimizer.simulate.error_ranges import latency_ranges
    from optimizer.simulate.measures import measure
    from optimizer.simulate.replicate import replicate
    from optimizer.simulate.report.files import Findings
    from optimizer.simulate.sweep import SweepPoint, sweep_points

    points = sweep_points(inputs, runs.sweep or []) if runs.sweep else []
    many = [inputs, *(point for _, point in points)]
    with long_work(f"simulating {inputs.scenario.name}") as work:
        records = replicate(
            [one.setup() for one in many],
            replications=runs.replications,
            processes=runs.processes,
            progress=work.share,
        )
    measures = [measure(one.scenario, found) for one, found in zip(many, records, strict=True)]
    _warn_of_silence(measures)
    return Findings(
        scenario=inputs.scenario,
        plan=inputs.plan,
        records=records[0],
        measures=measures[0],
        ranges=latency_ranges(inputs.setup(), measures[0], records[0]),
        budget=_advice(inputs, measures[0], runs) if budget.wants_advice else None,
        sweep=tuple(
            SweepPoint(values=values, measures=found)
            for (values, _), found in zip(points, measures[1:], strict=True)
        ),
    )


def _advice(inputs: Inputs, measures: Measures, runs: RunOptions) -> BudgetView:
    from optimizer.simulate.budget import STAGES, budget_view

    with long_work("looking for advice (--no-advice leaves it out)") as work:
        tell = work.staged(dict.fromkeys(STAGES, 1.0))
        return budget_view(
            inputs,
            measures,
            processes=runs.processes,
            progress=lambda stage: tell(stage, 0, 1),
        )


def _warn_of_silence(measures: Sequence[Measures]) -> None:
    if any(found.tokens == 0 for found in measures):
        typer.echo(
            "splitpoint: no token came in the simulated time, so latencies of 0 mean nothing; "
            "give a longer --duration",
            err=True,
        )
