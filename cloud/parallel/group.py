"""The ranks of one machine as a group that adds and gathers tensors (`torch.distributed`).

gloo carries tensors of CPUs, NCCL those of GPUs. Both listen on the loopback device only. NCCL was
never run by this project.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

_INTERFACE_VARIABLES: Final = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class RankGroup:
    """This process's place in the group: rank `rank` of `size`. One group a process at a time."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self.is_joined = False

    def join(self, store: Path, device: torch.device, timeout_s: float) -> None:
        """Meet the other ranks at the file `store`, which all of them name.

        timeout_s: how long any of them may wait for another. Raises RuntimeError after it.
        """
        loopback = _loopback_name()
        if loopback is not None:
            for variable in _INTERFACE_VARIABLES:
                os.environ.setdefault(variable, loopback)
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(store), self.size),  # type: ignore[attr-defined]
            rank=self.rank,
            world_size=self.size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        self.is_joined = True

    def leave(self) -> None:
        """End the membership; nothing where there is none."""
        if self.is_joined:
            self.is_joined = False
            dist.destroy_process_group()

    def add(self, rows: Tensor) -> Tensor:
        """The sum of all ranks' `rows`, in place. Every rank gets it."""
        rows = rows.contiguous()
        dist.all_reduce(rows)
        return rows

    def gather(self, part: Tensor, widths: Sequence[int]) -> Tensor:
        """Rank 0 gets the ranks' [T, widths[r]] side by side; the others keep `part`."""
        padded = part.new_zeros((part.shape[0], max(widths)))
        padded[:, : part.shape[1]] = part
        if self.rank > 0:
            dist.gather(padded, dst=0)
            return part
        parts = [torch.empty_like(padded) for _ in widths]
        dist.gather(padded, parts, dst=0)
        columns = [one[:, :width] for one, width in zip(parts, widths, strict=True)]
        return torch.cat(columns, dim=1)


class GroupSwitch:
    """The group as one model's layers see it. Until `is_on` they compute with their share alone.

    An engine tries its layers on random rows as it is made, each rank by itself.
    """

    def __init__(self, group: RankGroup) -> None:
        self.group = group
        self.is_on = False


class AddedModule(nn.Module):
    """A module over a rank's share of the channels; the ranks' results are added."""

    def __init__(self, module: nn.Module, switch: GroupSwitch) -> None:
        super().__init__()
        self.module = module
        self._switch = switch

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the module takes, a rank's share of it -> the sum, [..., D]."""
        out: Tensor = self.module(*inputs)
        return self._switch.group.add(out) if self._switch.is_on else out


class GatheredHead(nn.Module):
    """A rank's rows of the head. widths: how many rows each rank has."""

    def __init__(self, linear: nn.Module, switch: GroupSwitch, widths: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear
        self._switch = switch
        self._widths = tuple(widths)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, V] on rank 0. The others get their own columns of it, [T, widths[rank]]."""
        out: Tensor = self.linear(x)
        return self._switch.group.gather(out, self._widths) if self._switch.is_on else out


def _loopback_name() -> str | None:
    """The network device of 127.0.0.1."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in addresses):
            return name
    return None
