"""`splitpoint emulate-link`: a TCP relay that behaves like a given link, until interrupted."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

import typer
from rich.live import Live

from hwprofiles.emulator.event_loop import precise_event_loop
from hwprofiles.emulator.relay import Counters, Relay
from hwprofiles.emulator.sockets import Address, LaneCounters
from hwprofiles.errors import EmulatorError
from hwprofiles.links.catalog import load_link
from hwprofiles.links.schedule import BYTES_PER_S_PER_MBPS, read_trace
from hwprofiles.links.shape import LinkShape
from protos.addresses import is_loopback
from splitpoint.commands.choices import completed, link_profiles
from splitpoint.commands.option_groups import JsonOption, address_of, with_options
from splitpoint.views.output import print_json
from splitpoint.views.screen import open_console
from splitpoint.views.sizes import check_mbps

STATUS_EVERY_S: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """The link to act out: numbers, a recorded trace, or a link profile."""

    PANEL: ClassVar = "The link"

    rtt_ms: Annotated[
        float | None, typer.Option(min=0, help="Round trip time; overrides a trace's pings.")
    ] = None
    up_mbps: Annotated[
        float | None,
        typer.Option(min=0, help="Rate client to server, Mbit/s; overrides a trace's."),
    ] = None
    down_mbps: Annotated[
        float | None, typer.Option(min=0, help="Rate server to client, Mbit/s.")
    ] = None
    jitter_ms: Annotated[
        float, typer.Option(min=0, help="Each way a further delay, uniform from 0 to this.")
    ] = 0.0
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay this CSV (t_s, down_mbps, up_mbps, ping_ms; the last two may be "
            "missing); repeats at its end."
        ),
    ] = None
    profile: Annotated[
        str | None,
        typer.Option(
            help="Play a link profile (a shipped name, or a .yaml) instead.",
            autocompletion=completed(link_profiles),
        ),
    ] = None
    queue_kib: Annotated[
        int | None,
        typer.Option(min=2, help="KiB of each direction's buffer (default: 100 ms, at least 32)."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of jitter and of a profile's draws.")] = 0

    def shape(self) -> LinkShape:
        """The link that the options describe; bad combinations are a usage error."""
        for option, rate in (("--up-mbps", self.up_mbps), ("--down-mbps", self.down_mbps)):
            check_mbps(rate, option)
        rtt_s = None if self.rtt_ms is None else self.rtt_ms / 1e3
        up = None if self.up_mbps is None else self.up_mbps * BYTES_PER_S_PER_MBPS
        queue_bytes = None if self.queue_kib is None else self.queue_kib * 1024
        if self.profile is not None:
            given = (self.rtt_ms, self.up_mbps, self.down_mbps, self.trace, self.queue_kib)
            if self.jitter_ms or any(value is not None for value in given):
                raise typer.BadParameter(
                    "--profile brings its own numbers: give only --seed with it"
                )
            return load_link(self.profile).shape(seed=self.seed)
        if self.trace is not None:
            if self.down_mbps is not None:
                raise typer.BadParameter("the downlink comes from --trace: leave out --down-mbps")
            try:
                return LinkShape.from_trace(
                    read_trace(self.trace),
                    rtt_s=rtt_s,
                    up_bytes_per_s=up,
                    jitter_s=self.jitter_ms / 1e3,
                    queue_bytes=queue_bytes,
                    seed=self.seed,
                )
            except ValueError as error:
                raise typer.BadParameter(f"{error}: give --rtt-ms or --up-mbps") from error
        if rtt_s is None or up is None or self.down_mbps is None:
            raise typer.BadParameter(
                "describe the link: --rtt-ms, --up-mbps and --down-mbps, or --trace, or --profile"
            )
        return LinkShape.fixed(
            rtt_s=rtt_s,
            up_bytes_per_s=up,
            down_bytes_per_s=self.down_mbps * BYTES_PER_S_PER_MBPS,
            jitter_s=self.jitter_ms / 1e3,
            queue_bytes=queue_bytes,
            seed=self.seed,
        )


@with_options()
def emulate_link(
    link: LinkOptions,
    to: Annotated[str, typer.Option(help="The server, as HOST:PORT.")],
    listen: Annotated[
        str, typer.Option(help="Where to listen, as HOST:PORT; port 0 picks a free one.")
    ] = "127.0.0.1:0",
    duration: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow listening on other than loopback.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Relay TCP connections to a server across an emulated link, to try a deployment on it.

    Prints the address it listens on as the first line of stdout (with --json: of stderr), then
    runs until interrupted. Every connection shares the one link.
    """
    shape = link.shape()
    where = address_of(listen, "--listen")
    target = address_of(to, "--to", lowest_port=1)
    if not (insecure or is_loopback(where.host)):
        raise typer.BadParameter(
            f"{where.host} is not loopback, and the relay asks nobody who they are: "
            "pass --insecure to listen there all the same",
            param_hint="--listen",
        )
    loop = precise_event_loop()
    try:
        counters = loop.run_until_complete(
            _serve(loop, where, target, shape, duration, quiet=as_json)
        )
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
    if as_json:
        print_json(asdict(counters))


async def _serve(
    loop: asyncio.AbstractEventLoop,
    listen: Address,
    target: Address,
    shape: LinkShape,
    duration_s: float | None,
    *,
    quiet: bool,
) -> Counters:
    """Run the relay until a signal or the end of `duration_s`; returns the last counters."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    relay = Relay(loop, target=target, shape=shape)
    try:
        host, port = await relay.start(listen)
    except OSError as error:
        raise EmulatorError(f"cannot listen on {listen[0]}:{listen[1]}: {error}") from error
    try:
        typer.echo(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", err=quiet)
        async with _status_line(relay):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), duration_s)
        return relay.counters()
    finally:
        await relay.close()


@contextlib.asynccontextmanager
async def _status_line(relay: Relay) -> AsyncIterator[None]:
    """Keep one line of live counters on stderr, if that is a terminal."""
    console = open_console(stderr=True)
    if not console.is_terminal:
        yield
        return

    async def refresh(live: Live) -> None:
        last = relay.counters()
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            now = relay.counters()
            live.update(_line(last, now), refresh=True)
            last = now

    with Live("waiting", console=console, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(refresh(live))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _line(last: Counters, now: Counters) -> str:
    def lane(name: str, before: LaneCounters, after: LaneCounters) -> str:
        passed = after.delivered_bytes - before.delivered_bytes
        mbps = passed / (now.running_s - last.running_s) / BYTES_PER_S_PER_MBPS
        return (
            f"{name} {mbps:7.2f} Mbit/s, {after.delivered_bytes / 1e6:.1f} MB, "
            f"queue {after.queued_bytes / 1024:.0f} KiB"
        )

    return (
        f"{now.running_s:.0f} s  {now.open_connections} open of {now.total_connections}  |  "
        f"{lane('up', last.up, now.up)}  |  {lane('down', last.down, now.down)}  |  "
        f"late {now.mean_lateness_s * 1e3:.2f} ms"
    )
