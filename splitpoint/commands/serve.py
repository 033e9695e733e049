"""`splitpoint serve`: the cloud side of a bundle, on gRPC."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from splitpoint.views.sizes import parse_size


class LogFormat(str, Enum):
    """How the server's events are written."""

    OFF = "off"
    TEXT = "text"
    JSON = "json"


def serve(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle folder made by 'splitpoint build'.", show_default=False)
    ],
    listen: Annotated[
        str, typer.Option(help="HOST:PORT to listen on; port 0 picks a free one.", metavar="H:P")
    ] = "127.0.0.1:50051",
    max_sessions: Annotated[int, typer.Option(help="Most sessions at once.", min=1)] = 64,
    kv_memory: Annotated[
        str | None,
        typer.Option(help="Memory of the KV caches, such as 2GiB (default: half of what is free)."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model (default: one a core).", min=1)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without TLS and token.")
    ] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Server certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Key of the certificate (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", help="CA that clients must come from (mTLS).")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Accepted access tokens, one a line, with limits: docs/server.md."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of GET /metrics for Prometheus.", metavar="H:P"),
    ] = None,
    expose_metrics: Annotated[
        bool, typer.Option("--expose-metrics", help="Let --metrics listen beyond loopback.")
    ] = False,
    max_waiting: Annotated[
        int, typer.Option(help="Most sessions waiting in line for a place.", min=0)
    ] = 16,
    max_wait: Annotated[
        float, typer.Option(help="Seconds one may wait in line before it is sent away.", min=0.0)
    ] = 2.0,
    max_resume: Annotated[
        float, typer.Option(help="Seconds to keep the session of a broken stream.", min=0.0)
    ] = 60.0,
    drain: Annotated[
        float, typer.Option(help="Seconds for running sessions to end after SIGTERM.", min=0.0)
    ] = 30.0,
    log: Annotated[
        LogFormat, typer.Option(help="Log sessions to stderr: off, text or json.")
    ] = LogFormat.OFF,
) -> None:
    """Serve the cloud side of BUNDLE. Prints 'listening on HOST:PORT' when it is ready."""
    kv_memory_bytes = None if kv_memory is None else parse_size(kv_memory)

    import asyncio

    from cloud.server.access import Access, is_loopback
    from cloud.server.logs import log_to_stderr
    from cloud.server.process import ServerConfig, parse_listen, serve_until_stopped

    if log is not LogFormat.OFF:
        log_to_stderr(as_json=log is LogFormat.JSON)
    host, port = parse_listen(listen)
    metrics_host, metrics_port = ("127.0.0.1", None) if metrics is None else parse_listen(metrics)
    if not (expose_metrics or insecure or is_loopback(metrics_host)):
        raise typer.BadParameter(
            f"--metrics {metrics}: they have no password; add --expose-metrics if the network is "
            "yours alone"
        )
    config = ServerConfig(
        bundle=bundle,
        host=host,
        port=port,
        max_sessions=max_sessions,
        kv_memory_bytes=kv_memory_bytes,
        device=device,
        threads=threads,
        max_waiting=max_waiting,
        max_wait_s=max_wait,
        max_resume_s=max_resume,
        drain_s=drain,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        access=Access(
            tls_cert=tls_cert,
            tls_key=tls_key,
            client_ca=client_ca,
            token_file=token_file,
            insecure=insecure,
        ),
    )

    def ready(bound_port: int) -> None:
        print(f"listening on {host}:{bound_port}", flush=True)  # noqa: T201

    asyncio.run(serve_until_stopped(config, ready=ready))
