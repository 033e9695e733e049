"""What Ray reads from the environment when it is imported, for a cluster of one machine."""

from __future__ import annotations

import os
from typing import Final

# The switch has another purpose in Ray: with it off, a node's address is 127.0.0.1. Else Ray puts
# the machine's own address in the place of 127.0.0.1, and then all of its ports listen everywhere.
_ONE_MACHINE: Final = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def keep_ray_here() -> None:
    """Call it before Ray is imported. `launch` checks that it has worked."""
    os.environ[_ONE_MACHINE] = "0"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else Ray gives way to everything else on the machine, at a nice value of 15.
    os.environ.setdefault("RAY_worker_niceness", "0")
