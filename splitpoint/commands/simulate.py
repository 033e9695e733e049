"""`splitpoint simulate`: what latency a deployment would have, before anything is deployed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.progress import share_progress


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
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Simulate clients, links and servers, with the real scheduler and controller."""
    if plan is None and scenario is None:
        raise typer.BadParameter("give a plan.yaml, or a --scenario that has a deployment")
    from optimizer.simulate.assemble import Overrides, load_inputs
    from optimizer.simulate.measures import measure
    from optimizer.simulate.replicate import replicate
    from splitpoint.simulation_parts import REAL_PARTS

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
    with share_progress(f"simulating {inputs.scenario.name}") as progress:
        [records] = replicate(
            [inputs.setup()],
            REAL_PARTS,
            replications=replications,
            processes=processes,
            progress=progress,
        )
    measures = measure(inputs.scenario, records)
    if json_output:
        typer.echo(json.dumps(measures.to_json()))
        return
    from splitpoint.simulation_tables import print_measures

    print_measures(inputs.scenario, measures)
