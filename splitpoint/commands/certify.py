"""`splitpoint certify`: what each compression level of a bundle costs and does to the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer
from rich.table import Table

from splitpoint.commands.choices import DEVICES, check_level, one_of
from splitpoint.commands.option_groups import (
    BundleArgument,
    DeviceOption,
    JsonOption,
    SourceOptions,
    compute_device,
    with_options,
)
from splitpoint.commands.tables_option import AUTO_TABLES, DEFAULT_TABLES, check_tables
from splitpoint.text_input import read_text
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json
from splitpoint.views.screen import open_console

if TYPE_CHECKING:
    from codec.ladder import Ladder
    from optimizer.artifacts.bundle import Bundle
    from optimizer.export.certify.certificate import Certificate

# About how long each takes. A model that stays in memory measures window by window.
STAGE_COSTS: Final = {"reading hidden states": 10, "measuring levels": 60, "measuring windows": 30}


@dataclass(frozen=True, kw_only=True)
class HeldOutOptions:
    """The text to measure on."""

    PANEL: ClassVar = "Held-out text"

    text: Annotated[
        Path, typer.Option(help="Held-out text to measure on (UTF-8).", show_default=False)
    ]
    tokens: Annotated[int, typer.Option(help="Most tokens of the text to use.", min=2)] = 16_384
    window: Annotated[int, typer.Option(help="Context length in tokens.", min=2)] = 512
    adapt: Annotated[
        bool,
        typer.Option(
            "--adapt/--no-adapt",
            help="Also measure rows predicted from earlier ones of the window.",
        ),
    ] = True


@with_options()
def certify(
    bundle: BundleArgument,
    chosen: SourceOptions,
    held_out: HeldOutOptions,
    tables: Annotated[
        str, typer.Option(help="Which codec tables of the bundle, by name.", metavar="NAME")
    ] = DEFAULT_TABLES,
    levels: Annotated[str, typer.Option(help="Comma-separated level names; default all.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Write the rate-quality plot (PNG).")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure bits, perplexity, KL and top-1 agreement of every level; store them in the bundle."""
    one_of(device, DEVICES, "--device")
    if check_tables(tables) == AUTO_TABLES:
        raise typer.BadParameter("choose one by its name", param_hint="--tables")
    names = [check_level(name.strip(), "--levels") for name in levels.split(",") if name.strip()]
    from optimizer.artifacts.bundle import open_bundle
    from optimizer.errors import BuildError
    from optimizer.export.certify.certificate import certify as certify_ladder
    from optimizer.export.certify.certificate import store_certificate, text_windows
    from optimizer.export.layers.layered_model import LayeredModel
    from optimizer.export.working_folder import working_folder

    opened = open_bundle(bundle, role="edge")
    plan = opened.plan
    split = plan.partition.split
    with long_work(f"certifying {bundle}") as work:
        work.stage("reading the model")
        source = chosen.source()
        if source.sha256 != plan.model.sha256:
            raise BuildError(f"{bundle} was built from {plan.model.id}, not from {source.id}")
        ladder = _ladder(opened, tables, split)
        ids = source.load_tokenizer()(read_text(held_out.text))["input_ids"]
        with working_folder(bundle) as scratch:
            result = certify_ladder(
                LayeredModel(source, folder=scratch, device=compute_device(device)),
                ladder,
                split=split,
                windows=text_windows(ids, window=held_out.window, max_tokens=held_out.tokens),
                levels=names or None,
                adapt=held_out.adapt,
                progress=work.staged(STAGE_COSTS),
            )
        store_certificate(bundle, result, tables=tables)
    if plot is not None:
        from optimizer.export.certify.plot import plot_certificate

        plot_certificate(result, plot)
    if as_json:
        print_json({"tables": tables, **result.to_json()})
    else:
        open_console().print(_table(result, tables))


def _ladder(opened: Bundle, tables: str, split: int) -> Ladder:
    """The ladder of those tables; without any, the lossless one. BuildError for an unknown name."""
    from codec.ladder import Ladder
    from optimizer.errors import BuildError

    hidden_size = opened.plan.model.geometry.hidden_size
    listed = opened.codec_tables()
    if tables not in listed:
        raise BuildError(f"{opened.root}: no tables {tables}: it has {', '.join(listed)}")
    path = listed[tables].get(split)
    if path is None:
        return Ladder.lossless(hidden_size)
    return Ladder.load(path, hidden_size=hidden_size)


def _table(result: Certificate, tables: str) -> Table:
    table = Table(
        title=f"split {result.split}, tables {tables}: {result.num_tokens} tokens, "
        f"context {result.window}, perplexity {result.baseline_perplexity:.2f} untouched"
    )
    for column in ("level", "bits/element", "in prefill", "perplexity", "KL", "same top token"):
        table.add_column(column, justify="left" if column == "level" else "right")
    named = [(level.name, level) for level in result.levels]
    named += [(f"{level.name}, adapted", level) for level in result.adapted]
    for name, level in named:
        table.add_row(
            name,
            f"{level.bits_per_element:.2f}",
            f"{level.bits_per_element_prefill:.2f}",
            f"{level.perplexity_rise_pct:+.2f} % ± {level.perplexity_rise_stderr_pct:.2f}",
            f"{level.kl:.4f}",
            f"{100 * level.top1_agreement:.1f} %",
        )
    return table
