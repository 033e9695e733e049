"""GET /metrics over HTTP, for Prometheus."""

from __future__ import annotations

from prometheus_client import make_wsgi_app

from cloud.server.http_endpoint import HttpEndpoint
from cloud.server.metrics import Metrics


class MetricsEndpoint(HttpEndpoint):
    """Answers until `stop`; see HttpEndpoint for the port and the errors."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        super().__init__(make_wsgi_app(metrics.registry), host, port, name="metrics")
