"""`splitpoint simulate`: what latency a deployment would have, before anything is deployed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.views.progress import share_progress, stage_progress


def simulate(
    plan: Annotated[
        Path | None, typer.Argument(help="The plan; may be left out when the scenario has one.")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option(help="Clients, servers, load, faults: a YAML file.")
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="Link profile by name or path, or a recorded trace (.csv).")
    ] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="How many clients.")] = None,
    servers: Annotated[int | None, typer.Option(min=1, help="How many servers.")] = None,
    workload: Annotated[
        Path | None,
        typer.Option(help="Requests from a CSV (t_s,prompt_tokens,output_tokens)."),
    ] = None,
    duration: Annotated[float | None, typer.Option(min=0.001, help="Simulated seconds.")] = None,
    edge: Annotated[
        str | None, typer.Option(help="Device profile of all clients, instead of the plan's.")
    ] = None,
    cloud: Annotated[
        str | None, typer.Option(help="Device profile of the servers, instead of the plan's.")
    ] = None,
    budget_ttft: Annotated[
        float | None, typer.Option(min=0.000001, help="Seconds the first token may take.")
    ] = None,
    budget_tbt: Annotated[
        float | None, typer.Option(min=0.000001, help="Seconds every further token may take.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same result.")] = None,
    replications: Annotated[
        int, typer.Option(min=1, help="Runs with different seeds, pooled.")
    ] = 1,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes for them [default: one a core].")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="key=a,b,c: any key of plan or scenario; may be given several times."),
    ] = None,
    advice: Annotated[
        bool, typer.Option(help="With a budget: how many clients, which link, what to change.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html, JSON, CSV and PNGs.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Simulate clients, links and servers, with the real scheduler and controller."""
    if plan is None and scenario is None:
        raise typer.BadParameter("give a plan.yaml, or a --scenario that has a deployment")
    from optimizer.simulate.assemble import Overrides, load_inputs
    from optimizer.simulate.measures import measure
    from optimizer.simulate.replicate import replicate
    from optimizer.simulate.report.files import Findings, write_files
    from optimizer.simulate.sweep import SweepPoint, sweep_points

    inputs = load_inputs(
        plan,
        scenario,
        Overrides(
            link=link,
            edge=edge,
            cloud=cloud,
            num_clients=clients,
            num_servers=servers,
            workload=None if workload is None else str(workload),
            duration_s=duration,
            seed=seed,
            budget_ttft_s=budget_ttft,
            budget_tbt_s=budget_tbt,
        ),
    )
    points = sweep_points(inputs, sweep or [])
    many = [inputs, *(point for _, point in points)] if sweep else [inputs]
    with share_progress(f"simulating {inputs.scenario.name}") as progress:
        records = replicate(
            [one.setup() for one in many],
            replications=replications,
            processes=processes,
            progress=progress,
        )
    measures = [measure(one.scenario, found) for one, found in zip(many, records, strict=True)]
    if any(found.tokens == 0 for found in measures):
        typer.echo(
            "splitpoint: no token came in the simulated time, so latencies of 0 mean nothing; "
            "give a longer --duration",
            err=True,
        )
    view = None
    if advice and (budget_ttft is not None or budget_tbt is not None):
        from optimizer.simulate.budget import budget_view

        with stage_progress("budget") as stage:
            view = budget_view(inputs, measures[0], processes=processes, progress=stage)
    findings = Findings(
        scenario=inputs.scenario,
        records=records[0],
        measures=measures[0],
        budget=view,
        sweep=tuple(
            SweepPoint(values=values, measures=found)
            for (values, _), found in zip(points, measures[1:], strict=True)
        )
        if sweep
        else (),
    )
    if out is not None:
        write_files(findings, out)
    if json_output:
        typer.echo(json.dumps(findings.to_json()))
        return
    from splitpoint.views.simulation_tables import print_findings

    print_findings(findings)
    if out is not None:
        typer.echo(f"report: {out / 'report.html'}")
