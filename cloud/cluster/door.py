"""The door: HAProxy in front of all replicas, and their health, metrics and status in one place.

It asks the book who is there, and tells HAProxy. While the book is away, or new and not told of
everybody yet, nobody loses a slot: HAProxy notices by itself when a replica no longer answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cloud.cluster.arguments import (
    ACCESS_NAMES,
    check_arguments,
    read_access,
    whole_number,
)
from cloud.cluster.book import ReplicaReport, Roll, Sight
from cloud.cluster.door_config import Seat, commands, commands_anew, seats_after
from cloud.cluster.door_process import DoorProcess
from cloud.cluster.gathered import GatheredEndpoint, gathered_status
from cloud.errors import StartError
from cloud.server.access import Access
from cloud.server.http_endpoint import HttpEndpoint
from cloud.server.status.page import StatusApp
from protos.addresses import Address, is_loopback, parse_address
from protos.errors import AddressError

logger = logging.getLogger(__name__)

POLL_S: Final = 0.25
# HAProxy's slots for each replica that there may be: a rolling update has old and new ones.
_SLOTS_PER_REPLICA: Final = 2
_OTHER_STREAMS: Final = 32
# So often HAProxy may fail to take commands before it, and every stream, is ended.
_MOST_UNHEARD: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorSettings:
    """How the door listens. access: its TLS; tokens are checked by the replicas.

    most_replicas, sessions_each: what there may be behind it. replicas_ca: PEM of who signed the
    replicas' certificate, where they do not share the door's machine. metrics, status: where all
    replicas' metrics and the status page are answered (None: nowhere). behind_proxy: only another
    proxy reaches the door, and says whose calls they are.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    access: Access = field(default_factory=Access)
    most_replicas: int = 1
    sessions_each: int = 80
    replicas_ca: Path | None = None
    metrics: Address | None = None
    status: Address | None = None
    behind_proxy: bool = False


class DoorView:
    """What the door knows of the replicas now, for those that ask over HTTP."""

    def __init__(self) -> None:
        self.replicas: tuple[ReplicaReport, ...] = ()
        self.sights: Mapping[str, Sight] = {}


class DoorThread:
    """Starts at once, on a thread of its own, which HAProxy ends with.

    roll, sights: ask the book; they may raise. `ready` ends when it listens, with the error
    where it cannot.
    """

    def __init__(
        self,
        binary: str,
        settings: DoorSettings,
        *,
        roll: Callable[[], Roll],
        sights: Callable[[], Mapping[str, Sight]],
    ) -> None:
        settings.access.check(settings.host)
        self.ready: Future[None] = Future()
        self.view = DoorView()
        self._binary = binary
        self._settings = settings
        self._ask_roll = roll
        self._ask_sights = sights
        self._seats: dict[str, Seat] = {}
        self._num_slots = _SLOTS_PER_REPLICA * settings.most_replicas
        self._stop = threading.Event()
        self._num_unheard = 0  # attempts to tell HAProxy something that failed, one after the other
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="door", daemon=True)
        self._thread.start()

    def trouble(self) -> str | None:
        """Why streams do not get through; None: they do."""
        if self._failure is not None:
            return self._failure
        return None if self._thread.is_alive() else "the door's thread ended"

    def stop(self) -> None:
        """End HAProxy and the endpoints."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        endpoints: list[HttpEndpoint] = []
        door = None
        try:
            endpoints += self._endpoints()
            door = self._started()
            self.ready.set_result(None)
            while not self._stop.wait(POLL_S):
                self._failure = door.trouble()
                if self._failure is not None:
                    logger.critical("the door has failed: %s", self._failure)
                    return
                self._follow(door)
        except Exception as error:
            self._failure = str(error)
            if not self.ready.done():
                self.ready.set_exception(error)
            else:
                logger.exception("the door has failed")
        finally:
            if door is not None:
                door.stop()
            for endpoint in endpoints:
                endpoint.stop()

    def _started(self) -> DoorProcess:
        settings = self._settings
        pair = settings.access.key_and_chain()
        return DoorProcess(
            self._binary,
            Address(settings.host, settings.port),
            num_slots=self._num_slots,
            streams=settings.most_replicas * (settings.sessions_each + _OTHER_STREAMS),
            certificate=None if pair is None else pair[1].rstrip() + b"\n" + pair[0],
            client_ca=settings.access.client_ca,
            replicas_ca=settings.replicas_ca,
            behind_proxy=settings.behind_proxy,
        )

    def _endpoints(self) -> list[HttpEndpoint]:
        made: list[HttpEndpoint] = []
        metrics, status = self._settings.metrics, self._settings.status
        if metrics is not None:
            made.append(GatheredEndpoint(self.view, metrics))
        if status is not None:
            app = StatusApp(
                lambda: gathered_status(self.view.sights), loopback_only=is_loopback(status.host)
            )
            made.append(HttpEndpoint(app, status.host, status.port, name="status"))
        return made

    def _follow(self, door: DoorProcess) -> None:
        """Tell HAProxy what has changed. A book that is away changes nothing."""
        try:
            self.view.replicas = _known(self._ask_roll(), self.view.replicas)
            if self._settings.metrics is not None or self._settings.status is not None:
                self.view.sights = self._ask_sights()
        except Exception as error:
            logger.debug("the book does not answer (%s)", error)
            return
        seats = seats_after(self._seats, self.view.replicas, self._num_slots)
        told = commands(self._seats, seats, door.files.map)
        if self._num_unheard:
            told = commands_anew(seats, door.files.map, self._num_slots)
        try:
            door.tell(told)
        except OSError as error:  # its streams go on, so it is told again
            self._num_unheard += 1
            if self._num_unheard >= _MOST_UNHEARD:
                raise StartError(f"HAProxy takes no commands ({error})") from error
            logger.warning("HAProxy took no command (%s): it is told again", error)
            return
        self._num_unheard = 0
        self._seats = seats


def _known(roll: Roll, before: tuple[ReplicaReport, ...]) -> tuple[ReplicaReport, ...]:
    """Who is there, where a new book has not heard of everybody that was there before."""
    if roll.is_complete:
        return roll.replicas
    names = {one.name for one in roll.replicas}
    return (*roll.replicas, *(one for one in before if one.name not in names))


def read_door(arguments: Mapping[str, Any]) -> DoorSettings:
    """The door's settings from the `args` of a Ray Serve file. Raises StartError.

    The names: listen, metrics, status (each HOST:PORT), max_replicas, sessions_each, replicas_ca,
    behind_proxy, those of Access, and credentials.
    """
    own = ("listen", "metrics", "status", "max_replicas", "sessions_each", "replicas_ca")
    check_arguments(arguments, {*own, "behind_proxy", *ACCESS_NAMES}, flags=("behind_proxy",))
    try:
        address = parse_address(str(arguments.get("listen", "127.0.0.1:50051")), lowest_port=1)
        places = {
            name: parse_address(str(arguments[name]), lowest_port=1)
            for name in ("metrics", "status")
            if name in arguments
        }
    except AddressError as error:
        raise StartError(str(error)) from error
    access = read_access(arguments)
    for name, place in places.items():
        if not (access.insecure or is_loopback(place.host)):
            raise StartError(f"{name}: {place} has no password; use loopback, or insecure: true")
    authority = arguments.get("replicas_ca")
    return DoorSettings(
        host=address.host,
        port=address.port,
        access=access,
        most_replicas=whole_number(arguments, "max_replicas", 1),
        sessions_each=whole_number(arguments, "sessions_each", DoorSettings().sessions_each),
        replicas_ca=None if authority is None else Path(authority),
        metrics=places.get("metrics"),
        status=places.get("status"),
        behind_proxy=arguments.get("behind_proxy", False),
    )
