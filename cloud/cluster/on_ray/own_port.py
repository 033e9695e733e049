"""Ray Serve's own port of a replica, kept on this machine where Ray is.

Each of Ray Serve's replicas listens for calls of other deployments, on all interfaces. Such a call
is a pickle, which may run anything. Nothing here makes one. Ray Serve 2.60 has no setting for the
address, so the function that binds it is replaced.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import ray

from cloud.errors import StartError
from protos.addresses import is_loopback

_MODULE: Final = "ray.serve._private.replica"
_FUNCTION: Final = "add_port_to_grpc_server"
_EVERYWHERE: Final = "[::]"


def keep_own_port_here() -> None:
    """Call it in the replica's process before Ray Serve binds: in the `__init__` of its class.

    On a node with an address of its own, nothing changes. Raises StartError where this version of
    Ray Serve binds in another way.
    """
    node = ray.util.get_node_ip_address()
    if not is_loopback(node):
        return
    internals: Any = importlib.import_module(_MODULE)
    bind = getattr(internals, _FUNCTION, None)
    if bind is None:
        raise StartError(
            f"Ray Serve {ray.__version__} would listen on all interfaces; install ray 2.60"
        )

    def bind_here(server: Any, address: str) -> Any:
        return bind(server, address.replace(_EVERYWHERE, node))

    setattr(internals, _FUNCTION, bind_here)
