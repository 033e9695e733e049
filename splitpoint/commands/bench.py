"""`splitpoint bench`: how fast the parts are on this machine, and what codec levels cost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import typer

from hwprofiles.providers.table import AUTO
from splitpoint.commands.choices import DRAFTS, one_of
from splitpoint.commands.option_groups import (
    JsonOption,
    ProviderOption,
    check_provider,
    with_options,
)
from splitpoint.commands.tables_option import DEFAULT_TABLES, TablesOption, check_tables
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json
from splitpoint.views.work_state import WorkState

bench_app = typer.Typer(help="How fast the parts are on this machine.", no_args_is_help=True)

RATE_QUALITY: Final = Path(__file__).parents[2] / "benchmarks" / "codec" / "rate_quality.py"


@bench_app.callback()
def bench() -> None:
    """How fast the parts are on this machine."""


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Bits against quality of a bundle's tables."""

    PANEL: ClassVar = "Bits against quality"

    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Also measure bits against quality of this bundle's default tables, beside "
            "other methods; needs --model, --text and the repository."
        ),
    ] = None
    model: Annotated[Path | None, typer.Option(help="The model of the bundle.")] = None
    text: Annotated[Path | None, typer.Option(help="Held-out text (UTF-8).")] = None
    tokens: Annotated[int, typer.Option(help="Most tokens of the text to use.", min=512)] = 16_384
    plot: Annotated[Path | None, typer.Option(help="Write the rate-quality plot (PNG).")] = None

    def measure(self, work: WorkState) -> Any:
        """What the repository's benchmark prints; None when no bundle was given."""
        if self.bundle is None:
            return None
        if self.model is None or self.text is None:
            raise typer.BadParameter("--bundle needs --model and --text")
        work.stage("bits against quality")
        return _rate_quality(self.bundle, self.model, self.text, self.tokens, self.plot)


@bench_app.command()
@with_options()
def codec(
    quality: QualityOptions,
    hidden_size: Annotated[int, typer.Option(help="Width of a row.", min=32)] = 4096,
    prefill_rows: Annotated[int, typer.Option(help="Rows of the larger frame.", min=2)] = 512,
    repeats: Annotated[int, typer.Option(help="Runs to take the median of.", min=1)] = 30,
    as_json: JsonOption = False,
) -> None:
    """Encode and decode, one row and many, beside a plain copy of the same memory."""
    from codec.bench import run_codec_bench

    with long_work("measuring the codec") as work:
        rates = quality.measure(work)
        report = run_codec_bench(
            hidden_size=hidden_size,
            prefill_rows=prefill_rows,
            repeats=repeats,
            progress=work.steps,
        )
    if rates is not None:
        report["rate_quality"] = rates
    print_json(report, indent=None if as_json else 1)


@bench_app.command()
def decode(
    bundle: Annotated[Path, typer.Argument(help="Bundle with both sides.", show_default=False)],
    tokens: Annotated[int, typer.Option(help="Tokens of an answer.", min=2)] = 64,
    repeats: Annotated[int, typer.Option(help="Answers to take the median of.", min=1)] = 3,
    draft: Annotated[str, typer.Option(help="Drafter, as for 'splitpoint run'.")] = "off",
    provider: ProviderOption = AUTO,
    tables: TablesOption = DEFAULT_TABLES,
    as_json: JsonOption = False,
) -> None:
    """Decode through a server on loopback: tokens a second, and where a step's time goes."""
    one_of(draft, DRAFTS, "--draft")
    check_provider(provider)
    check_tables(tables)
    from splitpoint.decode_bench import run_decode_bench

    with long_work("measuring decoding") as work:
        report = run_decode_bench(
            bundle,
            tokens=tokens,
            repeats=repeats,
            draft=draft,
            provider=provider,
            tables=tables,
            progress=work.steps,
        )
    print_json(report, indent=None if as_json else 1)


@bench_app.command()
def server(
    bundle: Annotated[Path, typer.Argument(help="Bundle with cloud/.", show_default=False)],
    sessions: Annotated[str, typer.Option(help="Sessions a step, one run each.")] = "1,8,32",
    history: Annotated[int, typer.Option(help="Tokens in each cache.", min=1)] = 128,
    repeats: Annotated[int, typer.Option(help="Steps to take the median of.", min=1)] = 30,
    as_json: JsonOption = False,
) -> None:
    """The server's engine alone: one decode step of several sessions in a batch."""
    try:
        counts = [int(count) for count in sessions.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise typer.BadParameter(f"--sessions {sessions!r}: give numbers, such as 1,8,32")
    from cloud.engine.bench import run_server_bench
    from optimizer.artifacts.bundle import open_bundle

    opened = open_bundle(bundle, role="cloud")
    with long_work("measuring the server") as work:
        work.stage("loading the back")
        report = run_server_bench(
            opened.path("cloud/config.json").parent,
            first_layer=opened.plan.partition.split,
            sessions=counts,
            history=history,
            repeats=repeats,
            progress=work.steps,
        )
    print_json(report, indent=None if as_json else 1)


def _rate_quality(bundle: Path, model: Path, text: Path, tokens: int, plot: Path | None) -> Any:
    """What the repository's rate-quality benchmark prints for every split the bundle has."""
    from optimizer.artifacts.bundle import checked_files
    from optimizer.errors import BuildError

    found = checked_files(bundle, "codec", ".tables")
    if not found:
        raise BuildError(f"{bundle}: no codec tables; build it with calibration")
    if not RATE_QUALITY.is_file():
        raise BuildError("bits against quality needs the repository: benchmarks/ is not installed")
    command = [sys.executable, str(RATE_QUALITY), "--model", str(model), "--text", str(text)]
    command += ["--tokens", str(tokens), "--baselines"]
    for tables in found:
        command += ["--tables", f"{tables.stem.removeprefix('split-')}={tables}"]
    if plot is not None:
        command += ["--plot", str(plot)]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        raise BuildError("the rate-quality benchmark failed; its own words are above")
    return json.loads(done.stdout.splitlines()[-1])
