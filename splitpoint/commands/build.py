"""`splitpoint build`: from a model and a plan, or a few flags, to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from optimizer.artifacts.bundle import Role
from splitpoint.views.progress import stage_progress

if TYPE_CHECKING:
    from optimizer.artifacts.plan import Plan
    from optimizer.export.sources.model_source import ModelSource

DEFAULT_MAX_TOKENS = 2048
CALIBRATED_LEVEL = "q2"
SIDES: Final[dict[str, tuple[Role, ...]]] = {
    "both": ("edge", "cloud"),
    "edge": ("edge",),
    "cloud": ("cloud",),
}


def build(
    model: Annotated[Path, typer.Option(help="Model folder or GGUF file.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Bundle folder to make.", show_default=False)],
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="plan.yaml; without it, use the flags.")
    ] = None,
    split: Annotated[int | None, typer.Option(help="Layers on the edge.", min=0)] = None,
    front_bits: Annotated[int, typer.Option(help="Front weights: 4, 8, 16 or 32.")] = 4,
    back_bits: Annotated[int, typer.Option(help="Back weights: 8, 16 or 32.")] = 32,
    kv_bits: Annotated[int, typer.Option(help="The edge's KV cache: 8, 16 or 32.")] = 32,
    back_from: Annotated[
        int | None,
        typer.Option(
            help="First layer the cloud holds (default: the split); a lower one "
            "serves edges with other splits too.",
            min=0,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt and answer together.", min=1)
    ] = None,
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens a frame.", min=1)] = 128,
    level: Annotated[
        str | None,
        typer.Option(
            help=f"Default compression level ({CALIBRATED_LEVEL} when calibrated, else lossless)."
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Fit compression levels; without, only lossless is there.")
    ] = True,
    calibration_text: Annotated[
        Path | None,
        typer.Option(help="UTF-8 text to fit them on (default: the model writes its own)."),
    ] = None,
    calibration_tokens: Annotated[
        int, typer.Option(help="Tokens of text to fit on.", min=1)
    ] = 8192,
    exact_front: Annotated[
        bool,
        typer.Option(
            help="4- and 8-bit kernels compute in float32: slower, and one row or many "
            "rows give the same values."
        ),
    ] = False,
    side: Annotated[
        str,
        typer.Option(
            help="What to build: both, edge (another split for a running server), or cloud."
        ),
    ] = "both",
    force: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
) -> None:
    """Build a bundle: quantized front for the device, back for the server."""
    if (plan_file is None) == (split is None):
        raise typer.BadParameter("give a plan.yaml or --split, one of them")
    if side not in SIDES:
        raise typer.BadParameter(f"--side {side}: choose one of {', '.join(SIDES)}")
    from optimizer.artifacts.plan import load_plan
    from optimizer.export.bundle_builder import Calibration, build_bundle
    from optimizer.export.sources.model_source import open_source

    with stage_progress(f"building {out}") as progress:
        progress("reading the model")
        source = open_source(model)
        if plan_file is not None:
            plan = load_plan(plan_file)
        else:
            plan = plan_from_flags(
                source,
                split=split or 0,
                front_bits=front_bits,
                back_bits=back_bits,
                kv_bits=kv_bits,
                back_from=back_from,
                max_tokens=max_tokens,
                prefill_chunk=prefill_chunk,
                level=level or (CALIBRATED_LEVEL if calibrate else "lossless"),
                exact_front=exact_front,
            )
        calibration = None
        if calibrate:
            text = None if calibration_text is None else calibration_text.read_text("utf-8")
            calibration = Calibration(num_tokens=calibration_tokens, text=text)
        report = build_bundle(
            source,
            plan,
            out,
            progress=progress,
            force=force,
            sides=SIDES[side],
            calibration=calibration,
        )
    typer.echo(str(report.bundle))
    typer.echo(
        f"edge {report.edge_bytes / 2**20:.1f} MiB, cloud {report.cloud_bytes / 2**20:.1f} MiB, "
        f"peak memory of this build {report.peak_memory_bytes / 2**20:.0f} MiB",
        err=True,
    )


def plan_from_flags(
    source: ModelSource,
    *,
    split: int,
    front_bits: int,
    back_bits: int,
    kv_bits: int,
    back_from: int | None,
    max_tokens: int | None,
    prefill_chunk: int,
    level: str,
    exact_front: bool,
) -> Plan:
    """A plan that says what the flags say, for the model at hand."""
    from optimizer.artifacts.plan import ModelRef, Partition, Plan

    geometry = source.geometry
    return Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=geometry),
        partition=Partition(split=split, front_bits=front_bits, back_bits=back_bits),
        back_start=split if back_from is None else back_from,
        kv_bits=kv_bits,
        level=level,
        max_tokens=max_tokens or min(DEFAULT_MAX_TOKENS, geometry.context_length),
        prefill_chunk=prefill_chunk,
        exact_front=exact_front,
    )
