"""A follower: the process of one rank above 0. Rank 0 starts it and tells it every step.

    python -m cloud.parallel.follower FD    FD: its end of the socket pair (`cloud.parallel.link`)

It ends when rank 0 does, whatever it is doing then: a thread waits for the end of the stream. It
ignores SIGINT and SIGTERM, because rank 0 needs it to drain.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from cloud.engine.back_engine import BackEngine
from cloud.kv.pool import KvPool, KvShape
from cloud.parallel.free_memory import free_bytes
from cloud.parallel.group import GroupSwitch, RankGroup
from cloud.parallel.link import FollowerLink, LinkMessage
from cloud.parallel.shared_back import SharedBackFiles
from cloud.parallel.step_message import step_batch


class Follower:
    """One rank's engine and arena, as its messages make them."""

    def __init__(self, link: FollowerLink, group: RankGroup, device: torch.device) -> None:
        self._link = link
        self._group = group
        self._device = device
        self._engine: BackEngine | None = None
        self._switch: GroupSwitch | None = None
        self._pool: KvPool | None = None

    def handle(self, message: LinkMessage) -> None:
        """Do what one message asks for. Steps are not answered."""
        if message.kind == "step":
            self._step(message)
        elif message.kind == "load":
            self._load(**message.header["back"])
        elif message.kind == "join":
            store, timeout_s = message.header["store"], message.header["timeout_s"]
            self._group.join(Path(store), self._device, timeout_s)
            self._link.send("joined")
        elif message.kind == "arena":
            self._make_arena(message.header["num_blocks"])
        else:
            raise ValueError(f"a message of kind {message.kind!r}")

    def _load(
        self, folder: str, first_layer: int, weight_files: list[str], reference: str | None
    ) -> None:
        files = SharedBackFiles(
            Path(folder),
            group=self._group,
            first_layer=first_layer,
            device=self._device,
            weight_files=[Path(one) for one in weight_files],
            reference=None if reference is None else Path(reference),
        )
        model = files.model()
        num_bytes = model.num_bytes  # before the kernel packs them
        self._engine, self._switch, self._pool = BackEngine(model), files.switch, None
        self._link.send("loaded", num_bytes=num_bytes, free_bytes=free_bytes(self._device))

    def _make_arena(self, num_blocks: int) -> None:
        if self._engine is None or self._switch is None:
            raise ValueError("an arena before a model")
        shape: KvShape = self._engine.kv_shape
        self._pool = KvPool(shape, limit_bytes=num_blocks * shape.block_bytes, device=self._device)
        self._switch.is_on = True
        self._link.send("ready")

    def _step(self, message: LinkMessage) -> None:
        if self._engine is None or self._pool is None:
            raise ValueError("a step before an arena")
        self._engine.forward(step_batch(message, self._pool, self._engine.hidden_size))


def main(descriptor: int) -> None:
    """Follow until rank 0 is gone, or until something fails: then say why and end."""
    link = FollowerLink(socket.socket(fileno=descriptor))
    messages: queue.SimpleQueue[LinkMessage] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(link, messages), daemon=True).start()
    try:
        place: dict[str, Any] = messages.get().header
        if place["threads"] is not None:
            torch.set_num_threads(place["threads"])
        group = RankGroup(place["rank"], place["size"])
        follower = Follower(link, group, torch.device(place["device"]))
        while True:
            follower.handle(messages.get())
    except BaseException as error:  # rank 0 prints it: it is the only one that people see
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        try:
            link.send("failed", reason=reason)
        finally:
            os._exit(1)


def _receive(link: FollowerLink, messages: queue.SimpleQueue[LinkMessage]) -> None:
    """Queue what comes; without rank 0 there is nothing to do, not even to wait for a kernel.

    Rank 0 may have been killed, so its temporary folder is removed here too.
    """
    folder = None
    try:
        while True:
            message = link.receive()
            if message.kind == "place":
                folder = message.header["temporary_folder"]
            messages.put(message)
    except BaseException:  # a thread that ended alone would leave an orphan
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    main(int(sys.argv[1]))
