"""`splitpoint api`: an OpenAI-compatible server on the device, for any existing client."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands import generation_options as options
from splitpoint.commands.option_groups import with_options


@with_options()
def api(
    bundle: options.BundleArgument,
    device: options.DeviceOptions,
    control: options.ControlOptions,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 picks a free one.", metavar="H:P")
    ] = "127.0.0.1:8000",
    max_requests: Annotated[
        int, typer.Option(help="Requests at once, each with a KV cache; beyond: 429.", min=1)
    ] = 1,
    api_key_file: Annotated[
        Path | None, typer.Option(help="Accepted API keys, one a line.")
    ] = None,
    listen_tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of this server (PEM).")
    ] = None,
    listen_tls_key: Annotated[
        Path | None, typer.Option(help="Key of the certificate (PEM).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS and key.")
    ] = False,
) -> None:
    """Serve /v1/chat/completions and /v1/completions. Prints 'listening on HOST:PORT'."""
    from edge.api.access import ApiAccess
    from edge.api.server import ApiConfig, ApiServer
    from edge.device.mapped_pages import share_heaps

    host, port = parse_address(listen)
    config = ApiConfig(
        host=host,
        port=port,
        concurrency=max_requests,
        access=ApiAccess(
            tls_cert=listen_tls_cert,
            tls_key=listen_tls_key,
            key_file=api_key_file,
            insecure=insecure,
        ),
        default=options.completion_request(options.SamplingOptions(), control),
    )
    config.access.check(host)  # before the model is loaded

    def ready(bound_port: int) -> None:
        print(f"listening on {host}:{bound_port}", flush=True)  # noqa: T201

    share_heaps()
    with ExitStack() as stack:
        client = device.open_client(stack, bundle, concurrency=max_requests)
        ApiServer(client, config).run(ready)


def parse_address(text: str) -> tuple[str, int]:
    """HOST and PORT of 'HOST:PORT' (IPv6 in brackets); BadParameter for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)
