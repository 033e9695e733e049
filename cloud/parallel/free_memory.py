"""How much memory is free on the device that a back runs on."""

from __future__ import annotations

import torch

from hwprofiles.machine_limits import available_memory_bytes


def free_bytes(device: torch.device) -> int:
    """Bytes free on the GPU, or in main memory as far as this process's group may use it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()
