"""How many threads the model's kernels take on a CPU: what was asked for, or what may be used."""

from __future__ import annotations

import torch

from hwprofiles.machine_limits import usable_cpus


def use_threads(count: int | None = None) -> int:
    """Set torch's threads, from which the native kernels take theirs; returns their number.

    count: None for torch's own choice (the cores of this machine), but no more than this process
    may use: torch does not know of a CPU quota.
    """
    torch.set_num_threads(count or min(torch.get_num_threads(), usable_cpus()))
    return torch.get_num_threads()
