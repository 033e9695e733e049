"""`splitpoint calibrate`: codec tables that follow a text, for a bundle that is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from optimizer.artifacts.codec_tables import DEFAULT_TABLES, checked_tables_name
from optimizer.cost.build_memory import CALIBRATION_TOKENS
from optimizer.errors import BundleError
from splitpoint.commands.choices import DEVICES, one_of
from splitpoint.commands.option_groups import (
    BundleArgument,
    DeviceOption,
    JsonOption,
    SourceOptions,
    compute_device,
    with_options,
)
from splitpoint.text_input import read_text
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json

if TYPE_CHECKING:
    from optimizer.export.calibration.bundle_tables import AddedTables, TablesWish

# About how long each takes, in the order in which a calibration goes through them.
STAGE_COSTS: Final = {
    "the model writes calibration text": 25,
    "reading hidden states": 5,
    "reading gradients": 30,
    "reading tokens alone": 10,
    "measuring the model": 5,
    "measuring levels": 25,
    "measuring windows": 30,
}
KEPT: Final = "the bundle is as it was; the same command begins anew"


@dataclass(frozen=True, kw_only=True)
class FittedOptions:
    """What the tables are fitted to, and what they are called."""

    PANEL: ClassVar = "Tables"

    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="UTF-8 text to fit to; several give equal parts (default: as 'build' without "
            "--calibration-text).",
            show_default=False,
        ),
    ] = None
    name: Annotated[str, typer.Option(help="Name of the tables: what --tables chooses.")] = (
        DEFAULT_TABLES
    )
    tokens: Annotated[
        int,
        typer.Option(help="Tokens of text to fit to, at least (a wide model takes more).", min=1),
    ] = CALIBRATION_TOKENS
    certify: Annotated[
        bool, typer.Option(help="Measure bits and quality of each level on text held out.")
    ] = True
    replace: Annotated[bool, typer.Option("--replace", help="Fit tables of that name anew.")] = (
        False
    )
    out: Annotated[
        Path | None,
        typer.Option(help="Make a copy of the bundle with the tables, and leave it as it is."),
    ] = None

    def wish(self, device: str) -> TablesWish:
        """What the calibration makes. BadParameter for a name that cannot be."""
        try:
            checked_tables_name(self.name)
        except BundleError as error:
            raise typer.BadParameter(str(error), param_hint="--name") from error
        from optimizer.export.calibration.bundle_tables import TablesWish

        return TablesWish(
            name=self.name,
            texts=tuple(read_text(path) for path in self.text or ()),
            num_tokens=self.tokens,
            device=compute_device(device),
            replace=self.replace,
            certified=self.certify,
        )


@with_options()
def calibrate(
    bundle: BundleArgument,
    chosen: SourceOptions,
    fitted: FittedOptions,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Fit codec tables to a text and add them to a bundle; nothing else of it changes."""
    one_of(device, DEVICES, "--device")
    wish = fitted.wish(device)
    from optimizer.export.calibration.bundle_tables import add_tables

    with long_work(f"calibrating {bundle}", kept=KEPT) as work:
        work.stage("reading the model")
        added = add_tables(
            bundle, chosen.source(), wish, out=fitted.out, progress=work.staged(STAGE_COSTS)
        )
    if as_json:
        print_json(added.to_json())
    else:
        _show(added)


def _show(added: AddedTables) -> None:
    """Lines for people: where the tables are, and what their levels cost."""
    typer.echo(f"{added.bundle}: tables {added.name} of {added.text['fitted_tokens']} tokens")
    for certificate in added.certificates:
        for level in certificate.levels:
            typer.echo(
                f"  split {certificate.split} {level.name}: {level.bits_per_element:.2f} bits, "
                f"KL {level.kl:.4f} on {certificate.num_tokens} tokens held out"
            )
    typer.echo(
        "restart the server that serves this bundle; devices get the tables by 'splitpoint pull' "
        f"and take them with --tables {added.name}",
        err=True,
    )
