"""The options of a server that runs as several replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from protos.addresses import Address

if TYPE_CHECKING:
    from cloud.cluster.on_ray.launch import ClusterSettings
    from cloud.server.config import ServerConfig


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """How many servers there are behind the address, and where."""

    PANEL: ClassVar = "Replicas"

    replicas: Annotated[
        int | None,
        typer.Option(
            help="Replicas of the server behind this address, run by Ray (extra: ray). Default: "
            "one server, without Ray.",
            min=1,
        ),
    ] = None
    max_replicas: Annotated[
        int | None,
        typer.Option(help="Scale up to so many, by KV use and queue (default: --replicas).", min=1),
    ] = None
    replica_target: Annotated[
        float,
        typer.Option(help="How full replicas are to be when their number is chosen, 0 to 1."),
    ] = 0.7
    replica_cpus: Annotated[
        float, typer.Option(help="Cores of a replica, for its placement.", min=0.0)
    ] = 1.0
    replica_gpus: Annotated[
        float, typer.Option(help="GPUs of a replica; 0.5: two of them share one.", min=0.0)
    ] = 0.0

    def check(self, listen: Address) -> None:
        """BadParameter for numbers that do not fit each other."""
        if self.replicas is None:
            if self.max_replicas is not None:
                raise typer.BadParameter("--max-replicas goes with --replicas")
            return
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise typer.BadParameter(
                f"--max-replicas {self.max_replicas}: is below --replicas {self.replicas}"
            )
        if not 0 < self.replica_target <= 1:
            raise typer.BadParameter("--replica-target lies above 0, up to 1")
        if not listen.port:
            raise typer.BadParameter("--listen: with --replicas the port cannot be 0")

    def settings(
        self, config: ServerConfig, *, metrics: Address | None, status: Address | None, log: str
    ) -> ClusterSettings:
        """The cluster for a server of this configuration. Loads Ray. log: of ReplicaSettings."""
        from cloud.cluster.door import DoorSettings
        from cloud.cluster.on_ray.launch import ClusterSettings
        from cloud.cluster.settings import ReplicaSettings, replica_threads
        from optimizer.policy.replicas import ScalingRule

        least = self.replicas or 1
        most = max(self.max_replicas or least, least)
        return ClusterSettings(
            replicas=ReplicaSettings(
                config=replica_threads(config, most),
                scaling=ScalingRule(target=self.replica_target, least=least, most=most),
                cpus=self.replica_cpus,
                gpus=self.replica_gpus,
                log=log,
            ),
            door=DoorSettings(
                host=config.host,
                port=config.port,
                access=config.access,
                most_replicas=most,
                sessions_each=config.max_sessions + config.max_waiting,
                metrics=metrics,
                status=status,
                behind_proxy=config.behind_proxy,
            ),
        )
