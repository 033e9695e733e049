"""`splitpoint profile`: measure this machine or a link; show, list and compare profiles."""

from __future__ import annotations

import shlex
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwprofiles.errors import ProfileError, ProviderError
from hwprofiles.links.catalog import link_names, load_link
from hwprofiles.links.profile import LinkProfile
from hwprofiles.profiles.catalog import device_to_yaml, load_device, shipped_devices, to_plain
from hwprofiles.profiles.compare import compare_devices, key_figures
from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.providers.table import AUTO, CPU, PROVIDERS, ExecutionProvider
from splitpoint.commands.choices import check_sustained
from splitpoint.commands.connection_options import CredentialOptions
from splitpoint.commands.option_groups import (
    JsonOption,
    ProviderOption,
    address_of,
    check_provider,
    with_options,
)
from splitpoint.commands.refine import refine
from splitpoint.text_input import read_text
from splitpoint.views.long_work import long_work
from splitpoint.views.output import print_json
from splitpoint.views.screen import open_console
from splitpoint.views.sizes import parse_size

MIB = 1 << 20
SILENT = 10.0  # percent within which two figures count as the same

profile_app = typer.Typer(help="Measure, show and compare machines and links.")
profile_app.command()(refine)
OutOption = Annotated[Path | None, typer.Option("--out", help="Write the profile to this file.")]
NameOption = Annotated[str | None, typer.Option(help="Name of the profile.")]


@profile_app.callback()
def profiles() -> None:
    """Measure, show and compare machines and links."""


@profile_app.command()
def device(
    out: OutOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="One pass: 15 to 60 s.")] = False,
    sustained: Annotated[
        float,
        typer.Option(
            help="Minutes of work without a pause after that: which speed lasts, how hot it gets, "
            "what it draws. 0: none; phones and boards need 5 or more.",
            metavar="MINUTES",
        ),
    ] = 0.0,
    role: Annotated[
        Literal["auto", "edge", "cloud"],
        typer.Option(help="Whose kernels; auto: the edge's where onnxruntime is there."),
    ] = "auto",
    device_type: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option("--device", help="Where the cloud's kernels run; auto: CUDA if there."),
    ] = "auto",
    provider: ProviderOption = AUTO,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine with the kernels that will run on it: about 90 seconds.

    An edge runs ONNX Runtime, a cloud server torch: two profiles, each with its own rates.
    """
    check_provider(provider)
    from splitpoint.profiled_codec import ProfiledCodec

    chosen = _role(role)
    check_sustained(sustained, chosen)
    with long_work("profiling") as work:
        common: dict[str, Any] = {
            "name": name or (out.stem if out else None),
            "quick": quick,
            "progress": work.tell,
            "command": _command(),
            "codec": ProfiledCodec(),
        }
        if chosen == "edge":
            from hwprofiles.profiler.front_profiler import profile_device
            from splitpoint.profiled_drawing import drawing_kernel

            common |= {"drawing": drawing_kernel, "sustained_s": 60 * sustained}
            found = profile_device(**common, provider=_provider(provider))
        else:
            from hwprofiles.profiler.back_profiler import profile_server
            from splitpoint.profiled_server import loaded_kernels

            kernels, base = loaded_kernels(device_type)
            found = profile_server(kernels, **common, base=base)
    _warn(found)
    _deliver(device_to_yaml(found), out)
    if as_json:
        print_json(to_plain(found))
    elif out is None:
        _print_device(found)
    else:
        typer.echo(str(out))


def _warn(found: DeviceProfile) -> None:
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _role(asked: str) -> str:
    """The role to measure; says so when there was a choice. ProfileError without its library."""
    library = {"edge": "onnxruntime", "cloud": "torch"}
    installed = [role for role, module in library.items() if find_spec(module)]
    if asked == "auto" and installed:
        if len(installed) > 1:
            typer.echo("measuring the edge's kernels; --role cloud measures the server's", err=True)
        return installed[0]
    if asked not in installed:
        raise ProfileError(
            f"the {asked} role is measured with {library.get(asked, 'onnxruntime or torch')}, "
            "which is not installed: pip install 'splitpoint[edge]' or 'splitpoint[cloud]'"
        )
    return asked


def _provider(asked: str) -> ExecutionProvider:
    """The provider to measure. For `auto` the one that `run` may take by itself, if it starts."""
    from hwprofiles.profiler.provider_probe import parts_run
    from hwprofiles.providers.sessions import available_providers

    if asked != AUTO:
        return PROVIDERS[asked]
    for found in available_providers():
        if found.in_auto:
            try:
                parts_run(found)
            except ProviderError as error:
                typer.echo(f"{error}; measuring the CPU", err=True)
                continue
            typer.echo(f"measuring {found.name}; --provider cpu measures the CPU", err=True)
            return found
    return CPU


@profile_app.command()
@with_options()
def link(
    access: CredentialOptions,
    server: Annotated[str, typer.Option(help="HOST:PORT of a running server.", metavar="H:P")],
    out: OutOption = None,
    max_bytes: Annotated[
        str,
        typer.Option(help="Spend at most this much, both directions together.", metavar="SIZE"),
    ] = "16MiB",
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure round trips and rates to a running server; says and keeps its byte cap."""
    cap_bytes = parse_size(max_bytes, "--max-bytes")
    from edge.net.grpc_probe import GrpcProbeStream
    from edge.net.grpc_transport import GrpcTransport
    from edge.net.link_probe import probe_link
    from edge.net.loopback_probe import loopback_stack_s

    address = str(address_of(server, "--server", lowest_port=1))
    transport = GrpcTransport(address, access.credentials())
    typer.echo(f"link probe: at most {cap_bytes / MIB:.3g} MiB (--max-bytes)", err=True)
    try:
        stack_s = loopback_stack_s()
        with long_work("probing") as work, GrpcProbeStream(transport) as stream:
            found = probe_link(stream, cap_bytes=cap_bytes, stack_s=stack_s, progress=work.tell)
    finally:
        transport.close()
    if found.capped:
        typer.echo("warning: the byte cap cut a burst short; rates may be too low", err=True)
    label = name or (out.stem if out else server)
    measured = found.profile(name=label, source=f"{_command()}, {date.today().isoformat()}")
    plain = _link_plain(measured)
    _deliver(yaml.safe_dump(plain, sort_keys=False, width=100), out)
    if as_json:
        extra = {
            "spent_bytes": found.spent_bytes,
            "cap_bytes": found.cap_bytes,
            "stack_s": found.stack_s,
        }
        print_json({**plain, **extra, "capped": found.capped})
    elif out is None:
        _print_link(measured)
        typer.echo(
            f"{found.spent_bytes / MIB:.3g} MiB spent; {found.stack_s * 1e3:.2f} ms taken off each "
            "round trip for the network stacks"
        )
    else:
        typer.echo(str(out))


@profile_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A shipped profile's name, or a file.")],
    as_json: JsonOption = False,
) -> None:
    """Show one device or link profile with its sources."""
    found = _load(name)
    if as_json:
        plain = to_plain(found) if isinstance(found, DeviceProfile) else _link_plain(found)
        print_json(plain)
    elif isinstance(found, DeviceProfile):
        _print_device(found)
    else:
        _print_link(found)


@profile_app.command("list")
def list_() -> None:
    """List the shipped device and link profiles."""
    devices = Table("device", "roles", "memory", "bandwidth", "numbers", "summary")
    for name in shipped_devices():
        item = load_device(name)
        memory = item.memory
        devices.add_row(
            name,
            ", ".join(item.roles),
            f"{memory.total_bytes.value / 1e9:.0f} GB",
            f"{memory.bandwidth_bytes_per_s.value / 1e9:.4g} GB/s",
            "measured" if item.measured else "data sheet",
            item.summary,
        )
    links = Table("link", "up", "down", "round trip", "description")
    for name in link_names():
        path = load_link(name)
        links.add_row(
            name,
            f"{path.up_bytes_per_s.p50 * 8e-6:.4g} Mbit/s",
            f"{path.down_bytes_per_s.p50 * 8e-6:.4g} Mbit/s",
            f"{path.rtt_s.p50 * 1e3:.4g} ms",
            path.description,
        )
    for table in (devices, links):
        _console().print(table)


@profile_app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A device profile's name or file.")],
    second: Annotated[str, typer.Argument(help="The other; its figures are the 100 %.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two device profiles, such as a machine measured today with the shipped one."""
    rows = compare_devices(load_device(first), load_device(second))
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    table = Table("figure", first, second, "ratio")
    for row in rows:
        change = 100 * (row.ratio - 1)
        style = "" if abs(change) <= SILENT else "bold"
        values = (f"{row.first:.4g} {row.unit}", f"{row.second:.4g} {row.unit}")
        table.add_row(row.figure, *values, f"{row.ratio:.2f} ({change:+.0f} %)", style=style)
    _console().print(table)


@profile_app.command()
def schema(
    kind: Annotated[Literal["device", "link"], typer.Argument(help="Which schema.")],
) -> None:
    """Print the JSON Schema of a profile, for editors."""
    from hwprofiles.schema.json_schema import json_schema

    print_json(json_schema(DeviceProfile if kind == "device" else LinkProfile))


def _load(name: str) -> DeviceProfile | LinkProfile:
    """A link's name or a file with a link's keys; a device otherwise."""
    path = Path(name)
    if name in link_names() or path.suffix == ".csv":
        return load_link(name)
    if not path.is_file() and ("+" in name or "=" in name):
        return load_link(name)
    if path.is_file() and "rtt_s:" in read_text(path):
        return load_link(path)
    return load_device(name)


def _print_device(found: DeviceProfile) -> None:
    console = _console()
    kind = "measured" if found.measured else "data sheet"
    console.print(Text(found.name, style="bold") + f" ({kind}): {found.summary}")
    table = Table("figure", "value", "source")
    for row in key_figures(found):
        source = found.sources[row.source]
        place = f"{source.reference} {source.date or ''}".strip()
        note = f" ({source.note})" if source.note else ""
        table.add_row(row.figure, f"{row.value:.4g} {row.unit}", f"{source.kind}: {place}{note}")
    console.print(table)
    for warning in found.warnings:
        console.print(f"warning: {warning}")


def _print_link(found: LinkProfile) -> None:
    table = Table(
        "figure", "p05", "p50", "p95", "source", title=f"{found.name}: {found.description}"
    )
    for label, item, scale, unit in (
        ("up", found.up_bytes_per_s, 8e-6, "Mbit/s"),
        ("down", found.down_bytes_per_s, 8e-6, "Mbit/s"),
        ("round trip", found.rtt_s, 1e3, "ms"),
    ):
        values = (f"{value * scale:.4g} {unit}" for value in (item.p05, item.p50, item.p95))
        table.add_row(label, *values, item.source)
    _console().print(table)


def _link_plain(found: LinkProfile) -> dict[str, object]:
    plain: dict[str, object] = to_plain(found)
    plain.pop("folder", None)  # where it was loaded from, not part of it
    return plain


def _deliver(text: str, out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


def _console() -> Console:
    # Not a terminal: no wrapping at 80 columns, so that output can be searched.
    return open_console() if sys.stdout.isatty() else open_console(width=200)


def _command() -> str:
    return shlex.join(["splitpoint", *sys.argv[1:]])
