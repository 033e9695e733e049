"""The replicas as an application of Ray Serve.

Ray Serve places replicas, watches them, starts others in their place, scales and updates them. It
carries no message of a session: each replica is the whole server with its own port. The class
methods here are those that Ray Serve looks for.

The door is an application of its own (`cloud.cluster.on_ray.door`), so that an update of the
replicas leaves it and its port alone. Import path for a file of Ray Serve:
`cloud.cluster.on_ray.replicas:application`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from cloud.cluster.on_ray.book import BookOfRay
from cloud.cluster.on_ray.own_port import keep_own_port_here
from cloud.cluster.serving_thread import ServingThread
from cloud.cluster.settings import (
    ReplicaSettings,
    bundle_name,
    read_replicas,
    replica_config,
)
from cloud.server.logs import log_to_stderr
from optimizer.policy.replicas import DEFAULT_DELAYS, ScalingRule

logger = logging.getLogger(__name__)

REPLICAS_NAME: Final = "splitpoint"
# Beyond the drain: for streams to end and memory to be freed.
STOP_S: Final = 15.0
_HEALTH_EVERY_S: Final = 2.0
_LOAD_TIMEOUT_S: Final = 1800.0
_FULLNESS: Final = "fullness"


class Replica:
    """One server in a process of Ray's. It listens when `__init__` is over."""

    def __init__(self, settings: ReplicaSettings) -> None:
        """Raises what the server raises where it cannot start."""
        keep_own_port_here()
        name = f"r-{secrets.token_hex(4)}"
        config = replica_config(
            settings, name=name, node_address=ray.util.get_node_ip_address().strip("[]")
        )
        if settings.log:
            log_to_stderr(as_json=settings.log == "json")
        bundle = bundle_name(*config.bundles)
        self._serving = ServingThread(config, BookOfRay().ask, bundle=bundle)
        self._serving.ready.result(_LOAD_TIMEOUT_S)

    def check_health(self) -> None:
        """Raise where the server has failed: Ray then puts another replica in its place."""
        self._serving.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `wanted_replicas` decides by."""
        return {_FULLNESS: self._serving.fullness()}

    async def __del__(self) -> None:
        """Ray Serve's word for a replica that is to end: drain as a server does on SIGTERM."""
        serving = getattr(self, "_serving", None)
        if serving is not None:
            await asyncio.to_thread(serving.stop)


class WantedReplicas:
    """Ray Serve's autoscaling policy: `ScalingRule` over the replicas' fullness.

    Ray Serve keeps its own delays, so that a short peak starts nothing and a short lull ends
    nothing.
    """

    def __init__(self, target: float, least: int, most: int) -> None:
        self._rule = ScalingRule(target=target, least=least, most=most)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state."""
        shares = (context.aggregated_metrics or {}).get(_FULLNESS, {})
        if not shares:  # nobody has said anything yet
            return context.target_num_replicas, {}
        return self._rule.wanted(sum(shares.values())), {}


def replicas_application(settings: ReplicaSettings) -> Any:
    """The application of the replicas."""
    scaling = settings.scaling
    count: dict[str, Any] = {"num_replicas": scaling.least}
    if scaling.most > scaling.least:
        count = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.least,
                initial_replicas=scaling.least,
                max_replicas=scaling.most,
                metrics_interval_s=DEFAULT_DELAYS.every_s,
                look_back_period_s=DEFAULT_DELAYS.look_back_s,
                upscale_delay_s=DEFAULT_DELAYS.up_s,
                downscale_delay_s=DEFAULT_DELAYS.down_s,
                policy=AutoscalingPolicy(
                    policy_function=WantedReplicas,
                    policy_kwargs={
                        "target": scaling.target,
                        "least": scaling.least,
                        "most": scaling.most,
                    },
                ),
            )
        }
    deployment = serve.deployment(
        Replica,
        name="Replica",
        **count,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=_HEALTH_EVERY_S,
        health_check_timeout_s=30.0,
        graceful_shutdown_timeout_s=settings.config.drain_s + STOP_S,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return deployment.bind(settings)


def application(args: Mapping[str, Any]) -> Any:
    """The replicas for a file of Ray Serve: see `read_replicas`."""
    return replicas_application(read_replicas(args))
