"""`splitpoint demo`: fetch, build, serve, run, and where each millisecond went."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from splitpoint.progress import byte_progress, stage_progress
from splitpoint.server_process import serving

if TYPE_CHECKING:
    from edge.report import Completion

MODEL = "smollm2-135m-instruct"
DEMO_CALIBRATION_TOKENS = 4096  # few, so that the demo is quick; build takes twice as many
QUESTION = "Explain in a few sentences why the sky is blue."


def demo(
    question: Annotated[str, typer.Option(help="What to ask the model.")] = QUESTION,
    split: Annotated[int, typer.Option(help="Layers on the edge.", min=1, max=29)] = 10,
    folder: Annotated[Path, typer.Option(help="Where model and bundle go.")] = Path("work/demo"),
    models: Annotated[Path, typer.Option(help="Where fetched models go.")] = Path("models"),
) -> None:
    """Set everything up on this machine, ask one question, show where the time went."""
    from edge.client import EdgeClient
    from edge.completion import CompletionRequest
    from optimizer.build.bundle_builder import Calibration, build_bundle
    from optimizer.build.fetch import fetch_model
    from optimizer.build.source import open_source
    from splitpoint.commands.build import CALIBRATED_LEVEL, plan_from_flags

    screen = Console(stderr=True)
    with byte_progress(f"fetching {MODEL}") as progress:
        model = fetch_model(MODEL, models / MODEL, progress)
    screen.print(f"model    {model}")

    bundle = folder / f"bundle-split-{split}"
    started_s = time.monotonic()
    with stage_progress("building") as stage:
        stage("reading the model")
        source = open_source(model)
        plan = plan_from_flags(
            source,
            split=split,
            front_bits=4,
            back_bits=8,
            kv_bits=8,
            back_from=None,
            max_tokens=1024,
            prefill_chunk=128,
            level=CALIBRATED_LEVEL,
            exact_front=False,
        )
        shutil.rmtree(bundle, ignore_errors=True)
        report = build_bundle(
            source,
            plan,
            bundle,
            progress=stage,
            calibration=Calibration(num_tokens=DEMO_CALIBRATION_TOKENS),
        )
    layers = plan.model.geometry.num_layers
    screen.print(
        f"bundle   {bundle}: layers 0-{split - 1} at 4 bits on the edge "
        f"({report.edge_bytes / 2**20:.0f} MiB), {split}-{layers - 1} and the head at 8 bits in "
        f"the cloud ({report.cloud_bytes / 2**20:.0f} MiB), built in "
        f"{time.monotonic() - started_s:.0f} s"
    )
    del source

    with serving(bundle) as address:
        screen.print(f"server   {address}, a process of its own")
        with EdgeClient(bundle, address) as client:
            request = CompletionRequest(max_new_tokens=96)
            client.complete(question, CompletionRequest(max_new_tokens=4))  # warm up both sides
            screen.print(f"\n[bold]{question}[/bold]\n")
            run = client.start([{"role": "user", "content": question}], request)
            for piece in run:
                typer.echo(piece.text, nl=False)
            typer.echo("\n")
    screen.print(time_table(run.completion))


def time_table(completion: Completion) -> Table:
    """Where each millisecond went: one column for the prompt, one for a decoded token."""
    from edge.report import breakdown

    prefill = breakdown(completion.steps, "prefill")
    decode = breakdown(completion.steps, "decode")
    table = Table(title="Where each millisecond went", title_justify="left")
    table.add_column("part")
    table.add_column("prompt, a chunk [ms]", justify="right")
    table.add_column("decode, a token [ms]", justify="right")
    for name, seconds in decode.items():
        table.add_row(name, f"{1e3 * prefill.get(name, 0.0):.2f}", f"{1e3 * seconds:.2f}")
    table.add_section()
    table.add_row("sum", f"{1e3 * sum(prefill.values()):.2f}", f"{1e3 * sum(decode.values()):.2f}")
    table.add_row(
        "measured",
        f"TTFT {1e3 * completion.ttft_s:.1f}",
        f"TBT {1e3 * completion.tbt_quantile_s(0.5):.2f}",
    )
    figures = completion.to_json()
    table.caption = (
        f"{completion.num_prompt_tokens} prompt tokens, {len(completion.token_ids)} new; "
        f"{completion.tokens_per_s:.1f} tokens/s; up {figures['uplink_bytes']:,} B "
        f"({completion.bits_per_element:.2f} bits an element), "
        f"down {figures['downlink_bytes']:,} B"
    )
    return table
