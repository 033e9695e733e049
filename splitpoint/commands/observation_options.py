"""The options of `splitpoint serve` about what a server tells of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from protos.addresses import Address, is_loopback
from splitpoint.commands.option_groups import address_of


class LogFormat(str, Enum):
    """How the server's events are written."""

    OFF = "off"
    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, kw_only=True)
class ObservationOptions:
    """What the server tells about itself."""

    PANEL: ClassVar = "Metrics and logs"

    metrics: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of GET /metrics for Prometheus, and /health.", metavar="H:P"),
    ] = None
    expose_metrics: Annotated[
        bool,
        typer.Option("--expose-metrics", help="Let --metrics and --status listen beyond loopback."),
    ] = False
    status: Annotated[
        str | None,
        typer.Option(
            help="HOST:PORT of a read-only page: sessions, KV, tenants, last hour.", metavar="H:P"
        ),
    ] = None
    log: Annotated[LogFormat, typer.Option(help="Log sessions to stderr: off, text or json.")] = (
        LogFormat.OFF
    )
    measure: Annotated[
        Path | None,
        typer.Option(
            help="Append what steps took to this log, for 'profile refine'.", metavar="FILE"
        ),
    ] = None

    def check(self, *, replicas: int | None) -> None:
        """MeasurementError for a log that cannot be written, BadParameter for one of replicas."""
        if self.measure is None:
            return
        if replicas is not None:
            raise typer.BadParameter("--measure is kept by one server: it goes without --replicas")
        from optimizer.measured.log import MeasurementLog

        MeasurementLog(self.measure)

    def metrics_address(self, *, insecure: bool) -> Address | None:
        """Where the metrics are served; BadParameter where anybody could read them."""
        return self._address(self.metrics, "--metrics", insecure=insecure)

    def status_address(self, *, insecure: bool) -> Address | None:
        """Where the status page is served; BadParameter where anybody could read it."""
        return self._address(self.status, "--status", insecure=insecure)

    def _address(self, given: str | None, option: str, *, insecure: bool) -> Address | None:
        if given is None:
            return None
        address = address_of(given, option)
        if not (self.expose_metrics or insecure or is_loopback(address.host)):
            raise typer.BadParameter(
                f"{option} {given}: there is no password; add --expose-metrics if the "
                "network is yours alone"
            )
        return address
