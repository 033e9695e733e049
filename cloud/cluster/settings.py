"""How a cluster serves its bundles: plain values that go to the replicas and to the door."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from cloud.cluster.arguments import (
    ACCESS_NAMES,
    check_arguments,
    plain_number,
    read_access,
    whole_number,
    with_paths,
)
from cloud.errors import StartError
from cloud.server.config import ServerConfig
from hwprofiles.machine_limits import usable_cpus
from optimizer.artifacts.bundle import MANIFEST_NAME
from optimizer.policy.replicas import ScalingRule

# Of a server's settings, those that the door or Ray decides.
_NOT_OF_A_REPLICA: Final = frozenset(("access", "scheduler", "replica", "host", "port")).union(
    ("metrics_host", "metrics_port", "status_host", "status_port")
)
_OWN: Final = ("min_replicas", "max_replicas", "target", "cpus", "gpus", "replica_host", "log")
_LOGS: Final = ("", "text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What Ray starts, how often, and with what.

    config: of each replica. scaling: how many of them. cpus, gpus: of each, for Ray's placement;
    a share of a GPU lets several replicas have one. node_host: listen on the node's own address in
    place of loopback, where the door is on another machine. log: how each replica logs its sessions
    into Ray's files: "text" or "json"; empty: not at all.
    """

    config: ServerConfig
    scaling: ScalingRule = field(default_factory=ScalingRule)
    cpus: float = 1.0
    gpus: float = 0.0
    node_host: bool = False
    log: str = ""


def replica_config(settings: ReplicaSettings, *, name: str, node_address: str) -> ServerConfig:
    """The server's configuration of one replica. Raises StartError for an open one.

    On loopback it speaks plain text with the door on the same machine, and still asks for tokens.
    Client certificates are asked for by the door.
    """
    config, access = settings.config, settings.config.access
    if settings.node_host:
        if access.client_ca is not None:
            raise StartError(
                "client certificates are checked by the door, and replicas on other machines "
                "would let everybody by: leave out client_ca, or keep the replicas with the door"
            )
        config = replace(config, host=node_address)
    else:
        config = replace(config, host="127.0.0.1", access=replace(access, plain=True))
    return replace(config, port=0, replica=name, metrics_port=None, status_port=None)


def replica_threads(config: ServerConfig, num_replicas: int) -> ServerConfig:
    """The configuration for replicas that share one machine: each gets its part of the cores.

    The paths of bundles become absolute, and links in them are kept: an update follows them anew.
    """
    more = tuple(folder.absolute() for folder in config.more_bundles)
    config = replace(config, bundle=config.bundle.absolute(), more_bundles=more)
    if config.threads is not None or num_replicas == 1:
        return config
    return replace(config, threads=max(1, usable_cpus() // num_replicas))


def bundle_name(*folders: Path) -> str:
    """Names the content of bundles; 16 hexadecimal digits. Empty where one is not there yet."""
    digest = hashlib.sha256()
    try:
        for folder in folders:
            digest.update((folder / MANIFEST_NAME).read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()[:16]


def read_replicas(arguments: Mapping[str, Any]) -> ReplicaSettings:
    """Settings from the `args` of a Ray Serve file. Raises StartError for what it does not know.

    The names are those of ServerConfig and Access, and: min_replicas, max_replicas, target, cpus,
    gpus, credentials, log, replica_host ("loopback" or "node").
    """
    known = {one.name for one in fields(ServerConfig)} - _NOT_OF_A_REPLICA
    flags = [one.name for one in fields(ServerConfig) if one.type in ("bool", "bool | None")]
    check_arguments(arguments, {*known, *ACCESS_NAMES, *_OWN}, flags=flags)
    if "bundle" not in arguments:
        raise StartError("bundle: the bundle's folder is missing")
    host = arguments.get("replica_host", "loopback")
    if host not in ("loopback", "node"):
        raise StartError(f"replica_host: {host!r} is neither loopback nor node")
    values = {name: arguments[name] for name in known if name in arguments}
    least = whole_number(arguments, "min_replicas", 1)
    most = whole_number(arguments, "max_replicas", least)
    target = plain_number(arguments, "target", ScalingRule().target)
    if not 1 <= least <= most:
        raise StartError("min_replicas is above zero, and not above max_replicas")
    if not 0 < target <= 1:
        raise StartError("target lies above 0, up to 1")
    log = str(arguments.get("log", ""))
    if log not in _LOGS:
        raise StartError(f"log: {log!r} is neither text nor json")
    return ReplicaSettings(
        config=ServerConfig(**with_paths(values), access=read_access(arguments)),
        scaling=ScalingRule(target=target, least=least, most=most),
        cpus=plain_number(arguments, "cpus", 1.0),
        gpus=plain_number(arguments, "gpus", 0.0),
        node_host=host == "node",
        log=log,
    )
