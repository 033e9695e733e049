"""`splitpoint build`: from a model and a plan, or a few flags, to a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from optimizer.artifacts.bundle import Role
from optimizer.artifacts.plan import WEIGHT_BLOCKS, WeightBlocks
from optimizer.artifacts.weight_reference import WeightsPlace
from optimizer.cost.build_memory import CALIBRATION_TOKENS
from splitpoint.commands.choices import DEVICES, check_level, completed, one_of
from splitpoint.commands.option_groups import (
    DeviceOption,
    SourceOptions,
    compute_device,
    with_options,
)
from splitpoint.text_input import read_text
from splitpoint.views.long_work import NOTHING_KEPT, long_work

if TYPE_CHECKING:
    from optimizer.artifacts.plan import Plan
    from optimizer.export.bundle_builder import Calibration
    from optimizer.export.sources.model_source import ModelSource

DEFAULT_MAX_TOKENS: Final = 2048
CALIBRATED_LEVEL: Final = "q2"
SIDES: Final[dict[str, tuple[Role, ...]]] = {
    "both": ("edge", "cloud"),
    "edge": ("edge",),
    "cloud": ("cloud",),
}

WEIGHTS: Final[dict[str, WeightsPlace]] = {
    "auto": "auto",
    "reference": "reference",
    "copy": "copy",
}


@dataclass(frozen=True, kw_only=True)
class PartitionFlags:
    """What a plan would say, given as flags."""

    PANEL: ClassVar = "Without a plan"

    split: Annotated[int | None, typer.Option(help="Layers on the edge.", min=0)] = None
    splits: Annotated[
        str | None,
        typer.Option(
            help="Splits that a running answer may move between, as 6,10,14: the front is cut "
            "there, and the last one is the split. The cloud then holds every layer."
        ),
    ] = None
    front_bits: Annotated[int, typer.Option(help="Front weights: 4, 8, 16 or 32.")] = 4
    back_bits: Annotated[int, typer.Option(help="Back weights: 8, 16 or 32.")] = 32
    kv_bits: Annotated[int, typer.Option(help="The edge's KV cache: 8, 16 or 32.")] = 32
    back_from: Annotated[
        int | None,
        typer.Option(
            help="First layer the cloud holds (default: the split); a lower one "
            "serves edges with other splits too.",
            min=0,
        ),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest prompt and answer together.", min=1)
    ] = None
    positions: Annotated[
        int | None,
        typer.Option(
            help="Positions may run to here while tokens leave the cache of --max-tokens: what "
            "--context recent and entropy need. Default: no further than the cache.",
            min=1,
        ),
    ] = None
    prefill_chunk: Annotated[int, typer.Option(help="Prompt tokens a frame.", min=1)] = 128
    level: Annotated[
        str | None,
        typer.Option(
            help=f"Default compression level ({CALIBRATED_LEVEL} when calibrated, else lossless)."
        ),
    ] = None
    weight_blocks: Annotated[
        str,
        typer.Option(
            help="small or large: 32 weights of the front share a scale, or 64 and more, which "
            "takes a fifth less memory and loses more quality.",
            autocompletion=completed(WEIGHT_BLOCKS),
        ),
    ] = "small"
    stream_layers: Annotated[
        int,
        typer.Option(
            help="Layers of the front that are read from storage in every step, for a device whose "
            "memory cannot hold them all.",
            min=0,
        ),
    ] = 0
    exact_front: Annotated[
        bool,
        typer.Option(
            help="4- and 8-bit kernels compute in float32: slower, and one row or many "
            "rows give the same values."
        ),
    ] = False

    def blocks(self) -> WeightBlocks:
        """How many weights share a scale."""
        return "large" if self.weight_blocks == "large" else "small"

    def check(self) -> None:
        """BadParameter for bits, blocks or a level that there is not."""
        one_of(self.weight_blocks, WEIGHT_BLOCKS, "--weight-blocks")
        for option, bits, known in (
            ("--front-bits", self.front_bits, (4, 8, 16, 32)),
            ("--back-bits", self.back_bits, (8, 16, 32)),
            ("--kv-bits", self.kv_bits, (8, 16, 32)),
        ):
            one_of(str(bits), map(str, known), option)
        if self.level is not None:
            check_level(self.level)
        self.cuts()

    def cuts(self) -> tuple[int, ...]:
        """The splits of `--splits`. BadParameter where they are no numbers, or besides --split."""
        if self.splits is None:
            return ()
        try:
            cuts = tuple(int(part) for part in self.splits.split(","))
        except ValueError as error:
            message = f"--splits {self.splits}: layers separated by commas, such as 6,10,14"
            raise typer.BadParameter(message) from error
        if self.split is not None:
            raise typer.BadParameter("give --split or --splits, one of them")
        if self.back_from:
            raise typer.BadParameter(
                f"--splits with --back-from {self.back_from}: the cloud must hold every layer"
            )
        return cuts


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """On what the compression levels are fitted."""

    PANEL: ClassVar = "Calibration"

    calibrate: Annotated[
        bool, typer.Option(help="Fit compression levels; without, only lossless is there.")
    ] = True
    calibration_text: Annotated[
        Path | None,
        typer.Option(
            help="UTF-8 text to fit them on (default: a small model writes its own, a larger one "
            "takes a text that ships with splitpoint)."
        ),
    ] = None
    calibration_tokens: Annotated[
        int,
        typer.Option(help="Tokens of text to fit on, at least (a wide model takes more).", min=1),
    ] = CALIBRATION_TOKENS
    device: DeviceOption = "auto"

    def wanted(self) -> Calibration | None:
        """What the builder takes; None: no calibration."""
        from optimizer.export.bundle_builder import Calibration

        if not self.calibrate:
            return None
        path = self.calibration_text
        text = None if path is None else read_text(path)
        return Calibration(
            num_tokens=self.calibration_tokens, text=text, device=compute_device(self.device)
        )


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """What is made, and what may be there already."""

    PANEL: ClassVar = "Result"

    side: Annotated[
        str,
        typer.Option(
            help="What to build: both, edge (another split for a running server), or cloud."
        ),
    ] = "both"
    weights: Annotated[
        str,
        typer.Option(
            help="The server's weights: reference (read in the model's folder), copy (in the "
            "bundle, which can be moved then), or auto (reference for a folder of safetensors)."
        ),
    ] = "auto"
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on where a build of the same bundle was killed or interrupted."
        ),
    ] = False
    force: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False

    def check(self) -> None:
        """BadParameter for a choice that there is not."""
        one_of(self.weights, WEIGHTS, "--weights")
        one_of(self.side, SIDES, "--side")


@with_options()
def build(
    chosen: SourceOptions,
    out: Annotated[Path, typer.Option(help="Bundle folder to make.", show_default=False)],
    flags: PartitionFlags,
    calibration: CalibrationOptions,
    result: ResultOptions,
    plan_file: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="plan.yaml; without it, use the flags.")
    ] = None,
) -> None:
    """Build a bundle: quantized front for the device, back for the server."""
    result.check()
    flags.check()
    if (plan_file is None) == (flags.split is None and flags.splits is None):
        raise typer.BadParameter("give a plan.yaml, --split or --splits, one of them")
    one_of(calibration.device, DEVICES, "--device")
    from cloud.engine.served_back import ServedBack
    from optimizer.artifacts.plan import load_plan
    from optimizer.export.bundle_builder import build_bundle

    with long_work(f"building {out}", kept=lambda: _kept(out)) as work:
        work.stage("reading the model")
        source = chosen.source()
        default_level = CALIBRATED_LEVEL if calibration.calibrate else "lossless"
        report = build_bundle(
            source,
            load_plan(plan_file) if plan_file else plan_from_flags(source, flags, default_level),
            out,
            progress=work.stage,
            force=result.force,
            sides=SIDES[result.side],
            weights=WEIGHTS[result.weights],
            resume=result.resume,
            share=work.share,
            calibration=calibration.wanted(),
            open_back=ServedBack,
        )
    typer.echo(str(report.bundle))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(
        f"edge {report.edge_bytes / 2**20:.1f} MiB, cloud {report.cloud_bytes / 2**20:.1f} MiB, "
        f"peak memory of this build {report.peak_memory_bytes / 2**20:.0f} MiB",
        err=True,
    )


def _kept(out: Path) -> str:
    """What an interrupted build leaves, and how to go on."""
    from optimizer.export.build_stages import stages_left_of

    stages = stages_left_of(out)
    if not stages:
        return NOTHING_KEPT
    return f"kept: {', '.join(stages)}; the same command with --resume goes on"


def plan_from_flags(source: ModelSource, flags: PartitionFlags, default_level: str) -> Plan:
    """A plan that says what the flags say, for the model at hand."""
    from optimizer.artifacts.plan import ModelRef, Partition, Plan
    from optimizer.cost.front_kernels import blocks_for

    geometry, cuts = source.geometry, flags.cuts()
    split = cuts[-1] if cuts else flags.split or 0
    return Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=geometry),
        partition=Partition(split=split, front_bits=flags.front_bits, back_bits=flags.back_bits),
        back_start=split if flags.back_from is None and not cuts else flags.back_from or 0,
        kv_bits=flags.kv_bits,
        level=flags.level or default_level,
        max_tokens=flags.max_tokens or min(DEFAULT_MAX_TOKENS, geometry.context_length),
        prefill_chunk=flags.prefill_chunk,
        exact_front=flags.exact_front,
        front_splits=cuts if len(cuts) > 1 else (),
        weight_blocks=blocks_for(flags.front_bits, flags.blocks()),
        streamed_layers=flags.stream_layers,
        max_positions=flags.positions or 0,
    )
