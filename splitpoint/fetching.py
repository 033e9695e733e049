"""Fetch a server's bundle and show it: into a folder that is named, or into the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from edge.errors import TransportError
from edge.net.credentials import Credentials
from edge.net.grpc_transport import GrpcTransport
from edge.pull.cache import BundleCache, cache_root
from edge.pull.pulling import PullReport, PullSettings, pull
from edge.pull.rate_limit import PullRate
from edge.pull.source import GrpcFileSource
from splitpoint.views.long_work import bytes_of, long_work
from splitpoint.views.sizes import size_text
from splitpoint.views.terminal_text import shown_text

# 400 Mbit/s at a round trip of 80 ms.
WINDOW_BYTES: Final = 4 << 20
_KEPT: Final = "what came is kept; the same command goes on with it"


def fetch_bundle(
    address: str,
    credentials: Credentials,
    target: Path,
    *,
    bundle: str = "",
    bytes_per_s: float | None = None,
    by_size: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> PullReport:
    """Bring `target` to the server's state, with progress on stderr. See `PullSettings`.

    bundle: which one, where the server has several.
    """
    # A window as small as sessions need would be all that one round trip carries.
    window_bytes = WINDOW_BYTES if bytes_per_s is None else None
    transport = GrpcTransport(address, credentials, window_bytes=window_bytes)
    try:
        with long_work(f"fetching the bundle of {address}", kept=_KEPT) as work:

            def wait() -> None:
                work.stage("another process does, waiting for it")

            settings = PullSettings(
                rate=PullRate(bytes_per_s),
                by_size=by_size,
                progress=bytes_of(work),
                begin=begin,
                on_wait=wait,
            )
            return pull(GrpcFileSource(transport, bundle=bundle), target, settings)
    finally:
        transport.close()


def cached_bundle(
    addresses: Sequence[str],
    credentials: Credentials,
    cache_dir: Path | None,
    *,
    bundle: str = "",
) -> Path:
    """The folder with the bundle of the first server that has one for this device.

    bundle: which one, where a server has several.

    Where none can be asked, the one that was fetched before is used. Raises the first server's
    TransportError where there is none.
    """
    credentials.check()
    cache = BundleCache(cache_root(cache_dir))
    errors: list[TransportError] = []
    for address in addresses:
        place = cache.place(address, bundle)
        try:
            report = fetch_bundle(
                address,
                credentials,
                place.folder,
                bundle=bundle,
                by_size=True,
                begin=place.begin,
            )
        except TransportError as error:
            errors.append(error)
            continue
        if report.fetched:
            _say(f"fetched {size_text(report.fetched_bytes)} of the bundle of {address}")
        return place.folder
    for address in addresses:
        place = cache.place(address, bundle)
        if place.is_there:
            _say(f"{shown_text(str(errors[0]))}; using what was fetched of {address} before")
            return place.folder
    raise errors[0]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
