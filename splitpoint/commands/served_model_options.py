"""Options of `splitpoint serve`: what the models run on, and which bundles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from optimizer.errors import BundleError
from splitpoint.commands.choices import DEVICES, completed, kv_types, one_of, weight_types
from splitpoint.views.sizes import MOST_WAIT_S, check_seconds, parse_size


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What the model runs on."""

    PANEL: ClassVar = "Model and memory"

    device: Annotated[
        str,
        typer.Option(help="auto, cpu or cuda.", autocompletion=completed(DEVICES)),
    ] = "auto"
    tensor_parallel: Annotated[
        int,
        typer.Option(help="Devices of this machine over which every layer is divided.", min=1),
    ] = 1
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model (default: one a core).", min=1)
    ] = None
    decode_threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that decode frames beside the steps (default: one a core but one, at "
            "most 4; 0: the model thread does).",
            min=0,
            max=64,
        ),
    ] = None
    kv_memory: Annotated[
        str | None,
        typer.Option(help="Memory of the KV caches, such as 2GiB (default: half of what is free)."),
    ] = None
    frame_memory: Annotated[
        str, typer.Option(help="Memory for frames that have come and not run yet.")
    ] = "256MiB"
    max_step: Annotated[
        float, typer.Option(help="Seconds a step may take before the server gives up.", min=1.0)
    ] = 300.0
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Hash all of the weights that the bundle does not hold."),
    ] = False
    weights: Annotated[
        str | None,
        typer.Option(
            help="On a GPU: hold linear layers as bf16, fp8, int8 or int4 (default: as in the "
            "bundle). Rounding them changes tokens.",
            autocompletion=completed(weight_types),
        ),
    ] = None
    kv_type: Annotated[
        str | None,
        typer.Option(
            help="On a GPU: keep keys and values as bf16 or fp8 (default: as the layers compute). "
            "Rounding to 8 bits changes tokens.",
            autocompletion=completed(kv_types),
        ),
    ] = None
    bundles: Annotated[
        list[Path] | None,
        typer.Option(
            "--bundle",
            help="A further bundle behind the same address; repeat it for more. All options hold "
            "for all of them, and --kv-memory is divided.",
            metavar="DIR",
        ),
    ] = None
    draft_head: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an EAGLE, EAGLE-3 or multi-token head: the server guesses tokens ahead."
        ),
    ] = None
    drafts: Annotated[
        bool,
        typer.Option(
            "--drafts/--no-drafts",
            help="Guess tokens ahead for devices that listen: with a head, or on a CPU with the "
            "model's own layers while no frame waits.",
        ),
    ] = True
    squeeze_prefixes: Annotated[
        float | None,
        typer.Option(
            help="On a CPU: share of a long prompt's keys that answers read, such as 0.3 (default: "
            "all). It changes tokens.",
            metavar="SHARE",
        ),
    ] = None

    def check(self) -> None:
        """BadParameter for a size, a device, weights or a time that there is not."""
        self.kv_bytes()
        self.frame_bytes()
        one_of(self.device, DEVICES, "--device")
        check_seconds(self.max_step, "--max-step", MOST_WAIT_S)
        share = self.squeeze_prefixes
        if share is not None and not 0 < share <= 1:
            raise typer.BadParameter(f"--squeeze-prefixes {share:g}: lies above 0, up to 1")
        self._check_gpu_type("--weights", self.weights, weight_types())
        self._check_gpu_type("--kv-type", self.kv_type, kv_types())

    def check_bundles(self, first: Path) -> tuple[Path, ...]:
        """The further bundles. BadParameter for one that is given twice, and for options that
        several bundles do not take; BundleError for a folder that is none."""
        given = [first, *(self.bundles or ())]
        for index, folder in enumerate(given):
            if not folder.is_dir():
                raise BundleError(
                    f"{folder}: no such bundle folder (make one with 'splitpoint build')"
                )
            if folder.resolve() in [one.resolve() for one in given[:index]]:
                raise typer.BadParameter(f"--bundle {folder}: is given twice")
        if len(given) > 1 and self.draft_head is not None:
            raise typer.BadParameter(
                f"--draft-head {self.draft_head}: does not go with --bundle; a head belongs to one "
                "bundle, so build it into that one"
            )
        if len(given) > 1 and self.tensor_parallel > 1:
            raise typer.BadParameter(
                f"--tensor-parallel {self.tensor_parallel}: does not go with --bundle"
            )
        return tuple(given[1:])

    def _check_gpu_type(self, option: str, value: str | None, known: list[str]) -> None:
        if value is None:
            return
        one_of(value, known, option)
        if self.tensor_parallel > 1:
            raise typer.BadParameter(
                f"{option} {value}: does not go with --tensor-parallel {self.tensor_parallel}"
            )
        if self.device == "cpu":
            raise typer.BadParameter(
                f"{option} {value}: works on a GPU only; leave it out, or choose --device cuda"
            )

    def settings(self) -> dict[str, Any]:
        """The options as fields of ServerConfig, all but the bundles. BadParameter for no size."""
        return {
            "kv_memory_bytes": self.kv_bytes(),
            "device": self.device,
            "tensor_parallel": self.tensor_parallel,
            "threads": self.threads,
            "decode_threads": self.decode_threads,
            "frame_memory_bytes": self.frame_bytes(),
            "max_step_s": self.max_step,
            "verify": self.verify,
            "weights": self.weights,
            "kv_type": self.kv_type,
            "draft_head": self.draft_head,
            "drafts": self.drafts,
            "squeeze_prefixes": self.squeeze_prefixes,
        }

    def kv_bytes(self) -> int | None:
        """Bytes of the KV caches; None: chosen. BadParameter for no size."""
        return None if self.kv_memory is None else parse_size(self.kv_memory, "--kv-memory")

    def frame_bytes(self) -> int:
        """Bytes of frames that wait. BadParameter for no size."""
        return parse_size(self.frame_memory, "--frame-memory")
