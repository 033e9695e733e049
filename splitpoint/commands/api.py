"""`splitpoint api`: an OpenAI-compatible server on the device, for any existing client."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.connection_options import BundleOptions
from splitpoint.commands.measure_options import MeasureOptions
from splitpoint.commands.option_groups import address_of, with_options


@dataclass(frozen=True, kw_only=True)
class ListenOptions:
    """Where this API listens, and to whom."""

    PANEL: ClassVar = "This server"

    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 picks a free one.", metavar="H:P")
    ] = "127.0.0.1:8000"
    max_requests: Annotated[
        int, typer.Option(help="Requests at once, each with a KV cache.", min=1)
    ] = 1
    queue: Annotated[
        int, typer.Option(help="Requests more that may wait for their turn; beyond: 429.", min=0)
    ] = 0
    cors: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin of a web page that may use this API, such as https://chat.example.",
            metavar="ORIGIN",
        ),
    ] = None
    api_key_file: Annotated[Path | None, typer.Option(help="Accepted API keys, one a line.")] = None
    listen_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of this server (PEM).")
    ] = None
    listen_tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate (PEM).")] = (
        None
    )
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS and key.")
    ] = False


def origin_of(text: str) -> str:
    """A web origin: scheme and host, with a port where it has one. BadParameter for another."""
    parts = urlsplit(text)
    is_origin = parts.scheme in ("http", "https") and parts.netloc and text == text.strip()
    if not is_origin or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        raise typer.BadParameter(
            f"--cors {text!r}: give an origin such as https://chat.example (no path, no *)"
        )
    return text


@with_options()
def api(
    place: BundleOptions,
    device: options.DeviceOptions,
    control: options.ControlOptions,
    local: ListenOptions,
    measured: MeasureOptions,
) -> None:
    """Serve the OpenAI endpoints and, at /, a chat page. Prints 'listening on HOST:PORT'."""
    device.check()
    control.check()
    from edge.api.access import ApiAccess
    from edge.api.server import ApiConfig, ApiServer
    from hwprofiles.heap import share_heaps

    address = address_of(local.listen, "--listen")
    config = ApiConfig(
        host=address.host,
        port=address.port,
        concurrency=local.max_requests,
        access=ApiAccess(
            tls_cert=local.listen_tls_cert,
            tls_key=local.listen_tls_key,
            key_file=local.api_key_file,
            insecure=local.insecure,
        ),
        default=options.completion_request(options.SamplingOptions(), control),
        queue=local.queue,
        origins=tuple(origin_of(text) for text in local.cors or ()),
    )
    config.access.check(address.host)  # before the model is loaded

    def ready(bound_port: int) -> None:
        print(f"listening on {address._replace(port=bound_port)}", flush=True)  # noqa: T201

    bundle = place.folder(device, device.addresses())
    share_heaps()
    with ExitStack() as stack:
        client = measured.open_client(
            device,
            stack,
            bundle,
            program="api",
            concurrency=local.max_requests,
            keep_connected=True,
        )
        ApiServer(client, config).run(ready)
