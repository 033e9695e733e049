"""The front's graphs in ONNX Runtime: loaded when an engine needs one, freed with its last user.

A front that is cut into segments is several graphs. Engines share a graph's weights, and each has a
cache of its own (`edge.device.front`).
"""

from __future__ import annotations

import re
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

import onnxruntime as ort

from edge.device.layer_stream import LayerStream, StreamedLayer
from edge.device.mapped_pages import (
    MappedFiles,
    regions_of,
    release_read_only_pages,
    unmapping,
)
from edge.device.packed_copies import default_folder, packed_copy
from edge.errors import FrontError, InputError
from edge.text_input import utf8_path
from hwprofiles.errors import ProviderError
from hwprofiles.heap import trim_heap
from hwprofiles.machine_limits import usable_cpus
from hwprofiles.providers.packages import installed_packages
from hwprofiles.providers.sessions import ATTENTION, ProviderSession, open_session
from hwprofiles.providers.table import CPU, ExecutionProvider, TensorDevice
from optimizer.artifacts.bundle import front_names
from optimizer.artifacts.half_front import half_name
from optimizer.artifacts.plan import Plan
from optimizer.cost.streaming import streamed_places

# The first version with all that fronts are made of: earlier ones lack inputs of the experts' node.
OLDEST_ONNXRUNTIME: Final = (1, 31)


class FrontGraph:
    """One loaded graph. layers: those in it. mapped: its files, whose pages are given back.
    cache_device: where the node runs that reads and writes the cache. is_streamed: whether its
    weights are read from storage in every pass."""

    def __init__(
        self,
        opened: ProviderSession,
        layers: range,
        mapped: MappedFiles,
        *,
        low_memory: bool,
        cache_device: TensorDevice = "cpu",
        is_streamed: bool = False,
    ) -> None:
        self.session, self.placement = opened
        self.layers = layers
        self.cache_device = cache_device
        self.is_streamed = is_streamed
        self._mapped = mapped
        self._low_memory = low_memory

    def release_pages(self) -> None:
        """Give resident pages of its files back, where memory is short."""
        if self._low_memory:
            self._mapped.release()


class FrontGraphs:
    """The graphs of the front in `edge_dir`. Safe from several threads.

    threads: of the kernels (None: one for each CPU that may be used). spinning: threads that wait
    for work within a step spin instead of sleeping, which is faster; between steps they sleep in
    any case. After loading, pages of the weights' files are given back
    (`edge.device.mapped_pages`). low_memory: keep no memory for later that a step can get again,
    and go on giving pages back: those of the weights and of the other files that are `mapped`.
    provider: whose kernels run; the CPU runs the nodes that it leaves. halves: the graphs that
    compute in 16 bits. streamed_layers: how many layers are read from storage in every pass (None:
    the plan's), on the CPU (`edge.device.layer_stream`). forget: the system's page cache shall not
    keep what they read; for measurements.
    """

    def __init__(
        self,
        edge_dir: Path,
        *,
        plan: Plan,
        threads: int | None = None,
        spinning: bool = False,
        low_memory: bool = False,
        mapped: tuple[Path, ...] = (),
        provider: ExecutionProvider = CPU,
        halves: bool = False,
        streamed_layers: int | None = None,
        forget: bool = False,
    ) -> None:
        self._edge_dir = edge_dir
        self._halves = halves
        self._plan = plan
        self._low_memory = low_memory
        self._others = mapped
        self._provider = provider
        self._threads = threads or usable_cpus()
        self._spinning = spinning
        self._forget = forget
        self._places = streamed_places(plan, streamed_layers)
        self._streamed: dict[int, tuple[FrontGraph, StreamedLayer]] = {}
        self._stream: LayerStream | None = None
        self._lock = threading.Lock()
        self._loaded: weakref.WeakValueDictionary[int, FrontGraph] = weakref.WeakValueDictionary()

    def graph(self, index: int) -> FrontGraph:
        """The graph of segment `index`. FrontError when its file is none.

        It is freed when nobody holds it any more.
        """
        with self._lock:
            graph = self._loaded.get(index)
            if graph is None:
                graph = self._loaded[index] = self._load(index)
            return graph

    def one_pass(self) -> AbstractContextManager[None]:
        """Held by an engine while it runs its segments; where layers are streamed, others wait."""
        with self._lock:
            if self._stream is None and self._streamed:
                layers = [self._streamed[index][1] for index in sorted(self._streamed)]
                self._stream = LayerStream(layers, forget=self._forget)
        return nullcontext() if self._stream is None else self._stream.one_pass()

    def in_memory(self, graph: FrontGraph) -> AbstractContextManager[None]:
        """Within this, all weights of `graph` are in memory: of the next segment of a pass."""
        is_streamed = graph.is_streamed and self._stream is not None
        return self._stream.next_layer() if self._stream and is_streamed else nullcontext()

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the layers that are read in every pass; exact after the first one."""
        return sum(layer.num_bytes for _, layer in self._streamed.values())

    @property
    def num_threads(self) -> int:
        """Threads of the kernels."""
        return self._threads

    @property
    def num_loaded(self) -> int:
        """How many of the graphs are in memory."""
        return len(self._loaded)

    def _load(self, index: int) -> FrontGraph:
        name = front_names(self._plan)[index]
        path = self._edge_dir / (half_name(name) if self._halves else name)
        ends = (0, *self._plan.segment_ends)
        layers = range(ends[index], ends[index + 1])
        try:
            if index in self._places:
                return self._open_streamed(path, index, layers)
            opened = open_session(
                utf8_path(path), self._session_options(), self._provider, threads=self._threads
            )
            # The kernels have packed what they need: the file's pages would be a second copy of the
            # scales. Loading leaves holes in the heap.
            others = self._others if index == 0 and self._low_memory else ()
            pages = MappedFiles(path.with_name(f"{name}.data"), *others)
            pages.release()
            if self._halves:  # whose weights are read in the file, by every step
                pages = MappedFiles(*others)
            trim_heap()
            if self._low_memory:
                release_read_only_pages()
            is_left = opened.placement.leaves(ATTENTION)
            return FrontGraph(
                opened,
                layers,
                pages,
                low_memory=self._low_memory,
                cache_device="cpu" if is_left else self._provider.device,
            )
        except (InputError, FrontError):
            raise
        except ProviderError as error:
            raise FrontError(f"{path.name}: {error}") from error
        except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
            reason = _too_old() or str(error)
            raise FrontError(f"{path}: cannot be loaded ({reason})") from error

    def _open_streamed(self, path: Path, index: int, layers: range) -> FrontGraph:
        """The graph of a layer whose packed weights are mapped, and not in memory yet."""
        copy = packed_copy(path, default_folder(), self._session_options)
        options = self._session_options()
        # The copy is what the optimizer made of the graph.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        weights = copy.with_name(f"{copy.name}.data")
        with unmapping:  # of several sessions that map the file, each knows its own mappings
            others = regions_of(weights)
            opened = open_session(utf8_path(copy), options, CPU, threads=self._threads)
            layer = StreamedLayer(weights, opened.session, others)
        nothing = MappedFiles()  # the stream gives its pages back
        graph = FrontGraph(opened, layers, nothing, low_memory=False, is_streamed=True)
        self._streamed[index] = (graph, layer)
        trim_heap()
        return graph

    def _session_options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = not self._low_memory
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", str(int(self._spinning))
        )
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


def _too_old() -> str:
    """What to say of an ONNX Runtime that cannot run every front; empty for one that can."""
    version = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
    if version >= OLDEST_ONNXRUNTIME:
        return ""
    needed = ".".join(str(part) for part in OLDEST_ONNXRUNTIME)
    package = next(iter(installed_packages()), "onnxruntime")
    return f"onnxruntime {ort.__version__} is older than {needed}; pip install -U {package}"
