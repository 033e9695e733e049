"""`splitpoint serve --replicas`: start the cluster, follow its signals, and end it.

SIGTERM and SIGINT drain all replicas. SIGHUP reads the bundle's folder again and updates the
replicas one after the other, while the others go on. A bundle that cannot be served changes
nothing: the replicas go on with the one that they have loaded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray import serve

from cloud.cluster.door import DoorSettings
from cloud.cluster.on_ray.book import BOOK_NAME, book
from cloud.cluster.on_ray.door import DOOR_NAME, DOOR_RESOURCE, door_application
from cloud.cluster.on_ray.replicas import REPLICAS_NAME, STOP_S, replicas_application
from cloud.cluster.settings import ReplicaSettings
from cloud.errors import ServerFailedError, StartError
from cloud.server.logs import event
from optimizer.artifacts.bundle import open_bundle
from optimizer.errors import BundleError, PlanError
from protos.addresses import is_loopback

logger = logging.getLogger(__name__)

# How Python prints the class of an error before what it says.
_CLASS: Final = re.compile(r"^[\w.]*Error: ")
_WATCH_S: Final = 2.0
_POLL_S: Final = 0.1
_OBJECT_STORE_BYTES: Final = 80 << 20  # no message of a session is in it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """See each of them."""

    replicas: ReplicaSettings
    door: DoorSettings


async def serve_cluster(settings: ClusterSettings, *, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `ready` is called once the door takes streams.

    Raises StartError where the replicas or the door cannot start, and ServerFailedError once Ray
    can start no more of them.
    """
    settings.door.access.check(settings.door.host)
    _start_ray(settings)
    signals = _Signals()
    try:
        deploying = asyncio.ensure_future(asyncio.to_thread(_deploy_all, settings, signals))
        await _first_of(deploying, signals.stop)
        if not signals.stop.is_set():
            ready()
        while not signals.stop.is_set():
            if signals.update.is_set():
                signals.update.clear()
                await _update(settings, signals)
            await asyncio.to_thread(_check)
            pause = asyncio.ensure_future(asyncio.sleep(_WATCH_S))
            await _first_of(pause, signals.stop, signals.update)
        event(logger, "draining")
    finally:
        signals.stop.set()
        await asyncio.to_thread(_end, settings.replicas.config.drain_s)


async def _update(settings: ClusterSettings, signals: _Signals) -> None:
    """Put new replicas in the place of the old ones. It ends early when all are to end."""
    event(logger, "updating", bundle=_names(settings))
    try:
        for bundle in settings.replicas.config.bundles:
            await asyncio.to_thread(open_bundle, bundle, role="cloud")
        deploying = asyncio.ensure_future(asyncio.to_thread(_deploy_replicas, settings))
        await _first_of(deploying, signals.stop)
    except (BundleError, PlanError, StartError) as error:
        logger.error("no update, the replicas that run go on: %s", error)
        return
    if deploying.done():
        event(logger, "updated", bundle=_names(settings))


class _Signals:
    """SIGTERM and SIGINT set `stop`, SIGHUP sets `update`. Ray has put its own handlers before."""

    def __init__(self) -> None:
        self.stop, self.update = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.update.set)


async def _first_of(work: asyncio.Future[None], *events: asyncio.Event) -> None:
    """Wait until `work` is done, whose error it raises, or an event is set."""
    waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(one.wait()) for one in events]
    await asyncio.wait([work, *waits], return_when=asyncio.FIRST_COMPLETED)
    for one in waits:
        one.cancel()
    if work.done():
        work.result()
    else:  # its error no longer matters; without this asyncio would print it
        work.add_done_callback(lambda one: one.cancelled() or one.exception())


def _names(settings: ClusterSettings) -> str:
    return ", ".join(map(str, settings.replicas.config.bundles))


def _start_ray(settings: ClusterSettings) -> None:
    """A cluster on this machine, reachable from it alone (`keep_ray_here`)."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    replicas = settings.replicas
    most = settings.replicas.scaling.most
    ray.init(
        address="local",  # not the cluster that RAY_ADDRESS names
        _node_ip_address="127.0.0.1",
        # Replicas share the machine's cores, so their number is no reason to wait. One more: an
        # update starts the new replica before the old one has ended.
        num_cpus=max(1, round(replicas.cpus * (most + 1))),
        resources={DOOR_RESOURCE: 1},
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        _check_ray(replicas)
    except StartError:
        ray.shutdown()
        raise


def _check_ray(replicas: ReplicaSettings) -> None:
    """Raise StartError where others reach Ray, or where it has too little for the replicas."""
    node = ray.util.get_node_ip_address()
    if not is_loopback(node):
        raise StartError(f"Ray would listen on {node}, and its ports have no password")
    gpus, least = ray.cluster_resources().get("GPU", 0.0), replicas.scaling.least
    if replicas.gpus * least > gpus:  # Ray would wait for a GPU without a word
        raise StartError(f"--replica-gpus {replicas.gpus:g}: {least} replicas, and {gpus:g} GPUs")


def _deploy_all(settings: ClusterSettings, signals: _Signals) -> None:
    serve.start(proxy_location="Disabled")
    _deploy_replicas(settings)
    _run(door_application(settings.door), DOOR_NAME)
    while _num_serving() < settings.replicas.scaling.least:
        if signals.stop.is_set():
            return
        time.sleep(_POLL_S)


def _deploy_replicas(settings: ClusterSettings) -> None:
    _run(replicas_application(settings.replicas), REPLICAS_NAME)


def _run(application: Any, name: str) -> None:
    """Deploy, and wait until it runs. StartError with Ray's reason where it does not."""
    try:
        serve.run(application, name=name, route_prefix=None)
    except Exception as error:
        raise StartError(f"{name} does not start: {_reason(name) or error}") from error


def _reason(name: str) -> str:
    """The last line of what Ray says about an application that does not start."""
    if not ray.is_initialized():  # all has ended meanwhile; a question would start another Ray
        return ""
    known = serve.status().applications.get(name)
    if known is None:
        return ""
    said = [known.message, *(one.message for one in known.deployments.values())]
    lines = [line.strip() for text in said for line in text.splitlines() if "Error" in line]
    return _CLASS.sub("", lines[-1]) if lines else ""


def _check() -> None:
    """Raise ServerFailedError where Ray has given an application up and nobody serves."""
    for name, known in serve.status().applications.items():
        if known.status == "DEPLOY_FAILED" and not (name == REPLICAS_NAME and _num_serving()):
            raise ServerFailedError(f"{name}: {_reason(name) or known.message}")


def _num_serving() -> int:
    """How many replicas take sessions, as the book knows."""
    return sum(one.serving for one in ray.get(book().replicas.remote()))


def _end(drain_s: float) -> None:
    """Drain the replicas behind the door, then end the door and Ray."""
    for name in (REPLICAS_NAME, DOOR_NAME):
        if name in serve.status().applications:
            serve.delete(name, _blocking=False)  # it would wait for a minute at most
            _wait_until_gone(name, drain_s + 2 * STOP_S)
    with contextlib.suppress(ValueError):  # nobody has made one
        ray.kill(ray.get_actor(BOOK_NAME, namespace=BOOK_NAME))
    serve.shutdown()
    ray.shutdown()


def _wait_until_gone(name: str, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while name in serve.status().applications and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
