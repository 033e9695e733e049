"""GET /metrics over HTTP for Prometheus, and GET /health for probes that speak no gRPC.

/health answers 200 SERVING while sessions are taken, and 503 NOT_SERVING from the moment of a drain
or a failure, as gRPC health does. A probe needs neither a certificate nor a token for it, so it
works whatever guards the server's own port.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client import make_wsgi_app

from cloud.server.http_endpoint import HttpEndpoint
from cloud.server.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

HEALTH_PATH: Final = "/health"


class MetricsEndpoint(HttpEndpoint):
    """Answers until `stop`; see HttpEndpoint for the port and the errors."""

    def __init__(
        self, metrics: Metrics, host: str, port: int, *, is_serving: Callable[[], bool]
    ) -> None:
        """is_serving: whether sessions are taken; called on the endpoint's own threads."""
        super().__init__(_with_health(metrics, is_serving), host, port, name="metrics")


def _with_health(metrics: Metrics, is_serving: Callable[[], bool]) -> WSGIApplication:
    show_metrics: WSGIApplication = make_wsgi_app(metrics.registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != HEALTH_PATH:
            return show_metrics(environ, start_response)
        serves = is_serving()
        body = b"SERVING\n" if serves else b"NOT_SERVING\n"
        start_response(
            "200 OK" if serves else "503 Service Unavailable",
            [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
        )
        return [body]

    return app
