"""Options that `run`, `chat` and `api` share, and the client and requests they make."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer

from decoding.params import SamplingParams
from edge.errors import InputError
from hwprofiles.providers.table import AUTO
from splitpoint.commands import tables_option
from splitpoint.commands.choices import (
    DRAFTS,
    MOVE_WAYS,
    POWER_SETTINGS,
    PREFERRED,
    check_level,
    completed,
    levels,
    one_of,
    prefill_places,
)
from splitpoint.commands.connection_options import CredentialOptions
from splitpoint.commands.context_options import ContextOptions
from splitpoint.commands.option_groups import ProviderOption, check_provider
from splitpoint.text_input import text_argument
from splitpoint.views.link_lines import LinkLines
from splitpoint.views.sizes import MOST_TBT_S, MOST_WAIT_S, check_seconds, parse_size

if TYPE_CHECKING:
    from edge.client import EdgeClient
    from edge.generation.completion import CompletionRequest
    from edge.generation.report import Completion
    from optimizer.policy.retry import RetryPolicy

# A server is given this long for the first connection, however short --recover-within is.
MIN_CONNECT_S: Final = 1.0

MAX_THREADS: Final = 1024  # a typing error beyond this takes the machine's memory


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(CredentialOptions):
    """Where the server is, and what the device may spend."""

    PANEL: ClassVar = "Server and device"

    server: Annotated[
        list[str] | None,
        typer.Option(help="HOST:PORT of the cloud server; more to fall back on.", metavar="H:P"),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads of the front's kernels (default: chosen).", min=1, max=MAX_THREADS
        ),
    ] = None
    spin: Annotated[
        bool, typer.Option("--spin", help="Idle kernel threads spin: faster, costs a core.")
    ] = False
    provider: ProviderOption = AUTO
    affinity: Annotated[
        str | None, typer.Option(help="CPUs to run on, such as 0-3 or 0,2.", metavar="CPUS")
    ] = None
    power: Annotated[
        str,
        typer.Option(
            help="What the device may spend: low (few or small cores, low priority, fewest "
            "guesses), balanced (half of the big cores), or full.",
            autocompletion=completed(POWER_SETTINGS),
        ),
    ] = "full"
    memory_limit: Annotated[
        str | None,
        typer.Option(help="Refuse to load what would take more, such as 160MiB.", metavar="SIZE"),
    ] = None
    prefill_chunk: Annotated[
        int | None,
        typer.Option(help="Prompt tokens a frame (default: the plan's at most, adapted).", min=1),
    ] = None
    tables: tables_option.TablesOption = tables_option.DEFAULT_TABLES
    recover_within: Annotated[
        float | None,
        typer.Option(
            help="Seconds to look for a lost server before giving up "
            "(default: 60; with --fallback 5).",
            min=0.0,
        ),
    ] = None
    draft_model: Annotated[
        Path | None, typer.Option(help="Bundle of a small model for --draft model.")
    ] = None
    fallback: Annotated[
        Path | None,
        typer.Option(
            help="Bundle of a model that lies wholly on the device and answers when no server does."
        ),
    ] = None
    allow_control_tokens: Annotated[
        bool,
        typer.Option(
            "--allow-control-tokens",
            help="Control tokens in a message are real ones, not text: for trusted text only.",
        ),
    ] = False
    trace: Annotated[
        Path | None, typer.Option(help="Write one JSON line a frame to this file.")
    ] = None
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="Reuse prompt beginnings among all devices of your token, which can then guess "
            "them.",
        ),
    ] = False

    def check(self) -> None:
        """BadParameter for an address, a size or a time that cannot be meant, and for a provider
        that is not here. Loads no front."""
        self.addresses()
        self.limit_bytes()
        one_of(self.power, POWER_SETTINGS, "--power")
        if self.spin and self.power != "full":
            raise typer.BadParameter(
                f"--spin keeps idle cores busy, which --power {self.power} is there to avoid; "
                "give one of them"
            )
        check_seconds(self.recover_within, "--recover-within", MOST_WAIT_S)
        check_provider(self.provider)
        tables_option.check_tables(self.tables)

    def addresses(self) -> list[str]:
        """The servers. BadParameter for one that cannot be dialled."""
        return self.addresses_of(self.server)

    def limit_bytes(self) -> int | None:
        """The memory limit; None where none was given. BadParameter for no size."""
        given = self.memory_limit
        return None if given is None else parse_size(given, "--memory-limit")

    def open_client(
        self,
        stack: ExitStack,
        bundle: Path,
        *,
        concurrency: int = 1,
        keep_connected: bool = False,
        is_watched: bool = False,
        on_finished: Callable[[Completion], None] | None = None,
    ) -> EdgeClient:
        """An EdgeClient that lives as long as `stack`. keep_connected: it waits for users.
        is_watched: say on stderr when a server is lost, and what happens then.

        Says on stderr what runs the front where it is not simply the CPU. Bad usage for an address
        that cannot be dialled, and InputError for bad credentials, before anything is loaded.
        """
        self.check()
        credentials = self.credentials()
        from edge.client import EdgeClient
        from edge.device.power import apply_power, pin_to
        from edge.generation.link_notice import unheard

        if self.affinity is not None:
            pin_to(self.affinity)
        chosen = apply_power(self.power)
        trace = self.trace
        sink = None if trace is None else stack.enter_context(trace.open("w", encoding="utf-8"))
        client = stack.enter_context(
            EdgeClient(
                bundle,
                self.addresses(),
                credentials=credentials,
                concurrency=concurrency,
                threads=self.threads or chosen.threads,
                draft_effort=chosen.drafts,
                spinning=self.spin,
                provider=self.provider,
                memory_limit_bytes=self.limit_bytes(),
                prefill_chunk=self.prefill_chunk,
                draft_model=self.draft_model,
                fallback=self.fallback,
                allow_control_tokens=self.allow_control_tokens,
                retry_policy=self._retry_policy(),
                trace=sink,
                share_prefixes=self.share_prefixes,
                keep_connected=keep_connected,
                on_link=LinkLines() if is_watched else unheard,
                tables=self.tables,
                on_finished=on_finished,
            )
        )
        if client.front_report.line:
            typer.echo(client.front_report.line, err=True)
        return client

    def _retry_policy(self) -> RetryPolicy | None:
        """None: as the client does it by itself."""
        from optimizer.policy.retry import RetryPolicy

        if self.recover_within is None:
            return None
        connect_s = min(RetryPolicy().connect_s, max(self.recover_within, MIN_CONNECT_S))
        return RetryPolicy(recover_s=self.recover_within, connect_s=connect_s)


@dataclass(frozen=True, kw_only=True)
class ControlOptions(ContextOptions):
    """How an answer is carried: compression, deadline, what to do when it grows too long."""

    PANEL: ClassVar = "How it crosses the link"

    level: Annotated[
        str,
        typer.Option(
            help="Compression level: auto (the plan's), a name, or a number.",
            autocompletion=completed(levels),
        ),
    ] = "auto"
    deadline_tbt: Annotated[
        float | None,
        typer.Option(
            help="Seconds a decode step may take. With --level auto the level follows the link, "
            "and the answer ends early when nothing helps.",
            min=0.001,
        ),
    ] = None
    draft: Annotated[
        str,
        typer.Option(
            help="Guess ahead across the round trip: auto, off, ngram, head, cloud, or model.",
            autocompletion=completed(DRAFTS),
        ),
    ] = "auto"
    prefill: Annotated[
        str,
        typer.Option(
            help="Where the prompt's rows are computed: plan (as planned); edge; cloud (the prompt "
            "goes up as token ids); both (as many ids as seem fastest by what was measured).",
            autocompletion=completed(prefill_places),
        ),
    ] = "plan"
    prefer: Annotated[
        str,
        typer.Option(
            help="Who runs the layers: split (as planned), cloud (the server, all), or edge (the "
            "model of --fallback, no server).",
            autocompletion=completed(PREFERRED),
        ),
    ] = "split"
    split: Annotated[
        int | None,
        typer.Option(
            help="Layers to run here, of the splits that the bundle was built with (--splits), or "
            "0. Default: the plan's, and fewer while the device is short of memory, battery or "
            "cooling.",
            min=0,
        ),
    ] = None
    move_by: Annotated[
        str,
        typer.Option(
            help="What the server gets when the split moves towards it: kv (the moved layers' keys "
            "and values), ids (it computes them again), or auto (what is quicker).",
            autocompletion=completed(MOVE_WAYS),
        ),
    ] = "auto"
    adapt: tables_option.AdaptOption = True

    def check(self) -> None:
        """BadParameter for a choice that there is not, and for a deadline in milliseconds."""
        check_level(self.level)
        one_of(self.draft, DRAFTS, "--draft")
        one_of(self.prefill, prefill_places(), "--prefill")
        one_of(self.prefer, PREFERRED, "--prefer")
        one_of(self.move_by, MOVE_WAYS, "--move-by")
        self.check_context()
        check_seconds(self.deadline_tbt, "--deadline-tbt", MOST_TBT_S)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What to generate."""

    PANEL: ClassVar = "What to generate"
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.", min=1)] = 128
    temperature: Annotated[float, typer.Option(help="0: greedy.", min=0.0)] = 0.0
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1: off.")] = 1.0
    top_k: Annotated[int, typer.Option(help="Keep the K likeliest tokens; 0: off.", min=0)] = 0
    min_p: Annotated[float, typer.Option(help="Drop below this share of the top; 0: off.")] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="1: off.")] = 1.0
    seed: Annotated[int, typer.Option(help="Same seed, same tokens.", min=0)] = 0
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text.")] = None
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the model's own end.")
    ] = False


def completion_request(
    sampling: SamplingOptions, control: ControlOptions, *, logprobs: bool = False
) -> CompletionRequest:
    """The options as a checked request; a bad one is bad usage, before the runtime loads."""
    control.check()
    stops = tuple(text_argument(stop, "--stop") for stop in sampling.stop or ())
    try:
        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
            logprobs=logprobs,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    from edge.generation.completion import CompletionRequest

    try:
        return CompletionRequest(
            max_new_tokens=sampling.max_new_tokens,
            sampling=params,
            stop=stops,
            ignore_eos=sampling.ignore_eos,
            level=control.level,
            draft=control.draft,
            deadline_tbt_s=control.deadline_tbt,
            context=control.context,
            context_tokens=control.context_tokens,
            prefill=control.prefill,
            prefer=control.prefer,
            split=control.split,
            move_by=control.move_by,
            adapt=control.adapt,
        )
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
