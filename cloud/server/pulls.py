"""Pulls: devices fetch their side of the bundle, beside sessions and behind them.

A pull must not take the server from its sessions. Chunks are small, and the loop runs other work
between two of them. Few pulls run at once: in all, from one address, and of one tenant. A bucket
bounds the bytes a second of all pulls, and one those of each tenant that has a rate. A device that
finds no place is told when to ask again. Ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final

from cloud.errors import CapacityError, PullError, UnreadError
from cloud.server.byte_budget import ByteBudget
from cloud.server.offered_files import OfferedBundles, OfferedFiles
from cloud.server.places import Places
from cloud.server.timers import within
from cloud.sessions.tenants import Bucket, Tenant
from protos.pull import (
    MIN_CHUNK_BYTES,
    FetchRequest,
    FileChunk,
    FileList,
    encode_file_chunk,
)

MAX_PULLS: Final = 4
MAX_PULLS_PER_PEER: Final = 2
# A file that takes longer goes on in a further call, when others have had the place.
MAX_CALL_S: Final = 600.0
# How long one chunk may stay unread.
MAX_PAUSE_S: Final = 60.0
DEFAULT_PULL_BYTES_PER_S: Final = 32 << 20
_CHUNK_S: Final = 0.25  # a chunk at the rate of all pulls, or of its tenant
_READ_BYTES: Final = 1 << 20


class Pulls:
    """Answers `ListFiles` and `Fetch`. Lives on the event loop's thread."""

    def __init__(
        self,
        offered: Sequence[OfferedFiles],
        *,
        budget: ByteBudget,
        bytes_per_s: float | None = None,
        clock: Callable[[], float],
    ) -> None:
        """offered: of each bundle; empty: nothing is offered. bytes_per_s: of all pulls together;
        None: no limit."""
        self._offered = OfferedBundles(offered)
        self._budget = budget
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._places = Places("pulls", total=MAX_PULLS, per_peer=MAX_PULLS_PER_PEER)
        self._by_tenant: Counter[str] = Counter()
        self._buckets: dict[str, Bucket] = {}  # by tenant, and "" for all pulls together

    @property
    def offers_files(self) -> bool:
        """Whether a device would get all that it needs, as far as one can see now."""
        return self._offered.have_all()

    async def list(self, wanted: str = "") -> FileList:
        """The manifest of the bundle that `wanted` names. Raises PullError."""
        files = self._bundles().named(wanted)
        return await asyncio.get_running_loop().run_in_executor(None, files.list)

    async def send(self, request: FetchRequest, tenant: Tenant, context: Any) -> None:
        """Write the file's chunks to a gRPC call of the server's side.

        Raises PullError, CapacityError where there is no place or the call has lasted
        `MAX_CALL_S`, and UnreadError where the device does not read.
        """
        files = self._bundles().of(request.manifest_sha256)
        record = files.record(request)
        with self._place(tenant, context):
            file = await asyncio.get_running_loop().run_in_executor(None, files.open, request.name)
            with file:
                await self._send(file, record.num_bytes, request, tenant, context)

    async def _send(
        self, file: BinaryIO, num_bytes: int, request: FetchRequest, tenant: Tenant, context: Any
    ) -> None:
        ends_s = self._clock() + MAX_CALL_S
        chunk_bytes = self._chunk_bytes(request, tenant)
        loop, offset = asyncio.get_running_loop(), request.offset
        file.seek(offset)
        while offset < num_bytes:
            block = await loop.run_in_executor(
                None, file.read, min(_READ_BYTES, num_bytes - offset)
            )
            if not block:
                raise PullError(f"{request.name} has changed on this server since it started")
            for begin in range(0, len(block), chunk_bytes):
                data = block[begin : begin + chunk_bytes]
                await asyncio.sleep(self._wait_s(tenant, len(data)))
                if self._clock() > ends_s:
                    raise CapacityError(f"one call may last {MAX_CALL_S:g} s; ask again")
                message = encode_file_chunk(FileChunk(offset=offset, data=data))
                self._budget.passed_bytes += len(message)
                unread = UnreadError(f"the device read nothing for {MAX_PAUSE_S:g} s")
                await within(MAX_PAUSE_S, context.write(message), unread)
                offset += len(data)

    def _bundles(self) -> OfferedBundles:
        if not self._offered:
            raise PullError(
                "this server offers no files (it runs without --allow-pull): copy the bundle to "
                "the device"
            )
        return self._offered

    @contextlib.contextmanager
    def _place(self, tenant: Tenant, context: Any) -> Iterator[None]:
        """A place for a pull while the context lasts. Raises CapacityError where there is none."""
        if tenant.sessions is not None and self._by_tenant[tenant.name] >= tenant.sessions:
            raise CapacityError(f"{tenant.name} has {tenant.sessions} pulls already")
        with self._places.one(context):
            self._by_tenant[tenant.name] += 1
            try:
                yield
            finally:
                self._by_tenant[tenant.name] -= 1

    def _chunk_bytes(self, request: FetchRequest, tenant: Tenant) -> int:
        """Bytes of a chunk: fewer where a rate is so low that the device would think it lost."""
        rates = [one for one in (self._bytes_per_s, tenant.pull_bytes_per_s) if one is not None]
        fitting = [max(int(rate * _CHUNK_S), MIN_CHUNK_BYTES) for rate in rates]
        return min(request.max_chunk_bytes, *fitting) if fitting else request.max_chunk_bytes

    def _wait_s(self, tenant: Tenant, count: int) -> float:
        """How long a chunk of `count` bytes has to wait for both rates, seconds."""
        waits = [0.0]
        of_tenant = (f"tenant {tenant.name}", tenant.pull_bytes_per_s)
        for key, rate in (("", self._bytes_per_s), of_tenant):
            if rate is not None:
                now_s = self._clock()
                bucket = self._buckets.get(key) or Bucket.full(rate, at_s=now_s)
                self._buckets[key], wait_s = bucket.take(count, at_s=now_s)
                waits.append(wait_s)
        return max(waits)
