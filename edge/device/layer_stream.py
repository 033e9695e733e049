"""Brings streamed layers into memory just before they compute, and gives their pages back after.

A streamed layer is a graph of its own whose packed weights are mapped from a file
(`edge.device.packed_copies`). Passes go through the layers in one order, again and again. A thread
reads the next layer while this one computes; behind the last layer it reads the first, for the next
pass. So two layers are in memory at once. `optimizer.cost.streaming` says which layers stay and
what a pass costs.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.device.mapped_pages import HeldMapping, Region
from edge.errors import FrontError
from optimizer.cost.streaming import HELD_LAYERS


class StreamedLayer:
    """One streamed layer's packed weights. owner: what keeps the file mapped, an open session.
    others: see HeldMapping."""

    def __init__(self, path: Path, owner: Any, others: Sequence[Region] = ()) -> None:
        self._path = path
        self._owner = owner
        self._mapping = HeldMapping(path, others)
        self._knows = False
        self._mapping.release()

    @property
    def name(self) -> str:
        """Its file's name."""
        return self._path.name

    @property
    def num_bytes(self) -> int:
        """Bytes of its file that are mapped; after the first pass, those that a pass reads."""
        return self._mapping.num_bytes

    def read(self) -> None:
        """Read what a pass needs. Nothing before the first one: that shows what it needs."""
        if self._knows:
            self._mapping.read()

    def release(self, *, forget: bool) -> None:
        """Give the pages back. forget: the system's page cache shall not keep them either."""
        if not self._knows:
            self._mapping.learn()
            self._knows = True
        self._mapping.release()
        if forget:
            number = os.open(self._path, os.O_RDONLY)
            try:
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(number)


class LayerStream:
    """See the module's docstring. layers: in the order of a pass. forget: see StreamedLayer; for
    measurements. One pass at a time; others wait."""

    def __init__(self, layers: Sequence[StreamedLayer], *, forget: bool = False) -> None:
        self._state = _StreamProgress(tuple(layers), forget)
        self._pass = threading.Lock()
        self._thread = threading.Thread(target=_read_ahead, args=(self._state,), daemon=True)
        self._thread.start()
        weakref.finalize(self, _stop, self._state)

    @property
    def pass_bytes(self) -> int:
        """Bytes that a pass reads, known after the first."""
        return sum(layer.num_bytes for layer in self._state.layers)

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Held while one pass goes through the layers. One that fails leaves the order whole."""
        with self._pass:
            end = self._state.num_done + len(self._state.layers)
            try:
                yield
            finally:
                while self._state.num_done < end:
                    self._state.done()

    @contextmanager
    def next_layer(self) -> Iterator[None]:
        """The next layer of the pass is in memory within this. FrontError where it cannot be."""
        self._state.wait()
        try:
            yield
        finally:
            self._state.done()


class _StreamProgress:
    """What the passes and the reading thread share. Counts go on from pass to pass."""

    def __init__(self, layers: tuple[StreamedLayer, ...], forget: bool) -> None:
        self.layers = layers
        self.forget = forget
        self.num_done = 0
        self.num_read = 0
        self.failed: OSError | None = None
        self.is_closed = False
        self.changed = threading.Condition()

    def wait(self) -> None:
        """Until the layer that comes next is in memory."""
        with self.changed:
            self.changed.wait_for(lambda: self.num_read > self.num_done or self.failed is not None)
            if self.failed is not None:
                raise FrontError(f"a streamed layer cannot be read from storage ({self.failed})")

    @property
    def may_read(self) -> bool:
        """Whether a further layer may be read."""
        return self.failed is None and self.num_read < self.num_done + HELD_LAYERS

    @property
    def num_over(self) -> int:
        """Layers that were read and have computed."""
        return min(self.num_read, self.num_done)

    def has_read(self) -> None:
        """A further layer is in memory."""
        with self.changed:
            self.num_read += 1
            self.changed.notify_all()

    def done(self) -> None:
        """The layer that was next has computed."""
        with self.changed:
            self.num_done += 1
            self.changed.notify_all()


def _read_ahead(state: _StreamProgress) -> None:
    """Read and release in turn, until the stream is closed."""
    count, num_released = len(state.layers), 0
    while True:
        with state.changed:
            while not (state.is_closed or state.may_read or num_released < state.num_over):
                state.changed.wait()
            if state.is_closed:
                return
            num_over, may_read = state.num_over, state.may_read
        while num_released < num_over:
            state.layers[num_released % count].release(forget=state.forget)
            num_released += 1
        if may_read:
            try:
                state.layers[state.num_read % count].read()
            except OSError as error:
                state.failed = error
            state.has_read()


def _stop(state: _StreamProgress) -> None:
    with state.changed:
        state.is_closed = True
        state.changed.notify_all()
