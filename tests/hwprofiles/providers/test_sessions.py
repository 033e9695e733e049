"""Who runs a graph is found out, and a provider that does not run it is an error with a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import onnxruntime as ort
import pytest

from hwprofiles.errors import ProviderError, UnknownKernelError
from hwprofiles.profiler import provider_probe
from hwprofiles.profiler.kernel_graphs import DecoderLayers, decoder_stack
from hwprofiles.profiler.kernel_runs import KernelSettings, open_kernels
from hwprofiles.profiles.engines import EDGE_ENGINES
from hwprofiles.providers import packages
from hwprofiles.providers.sessions import (
    ATTENTION,
    NodePlacement,
    available_providers,
    open_session,
    require_listed,
)
from hwprofiles.providers.table import CHOICES, CPU, CUDA, PROVIDERS, ProviderName

# The CPU's kernels under another name: the ways of a provider that this machine has not.
OTHER = replace(CUDA, runtime_name=CPU.runtime_name, options=lambda _threads: {}, device="cpu")
GRAPH = decoder_stack(
    DecoderLayers(
        width=64,
        inner=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        num_layers=1,
        weight_bits=4,
        compute="int8",
    )
)


class Node(NamedTuple):
    op_type: str


class Part:
    def __init__(self, ep_name: str, *kinds: str) -> None:
        self.ep_name = ep_name
        self._kinds = kinds

    def get_nodes(self) -> Sequence[Node]:
        return [Node(kind) for kind in self._kinds]


def session_with(*parts: Part, providers: tuple[str, ...] = (CUDA.runtime_name,)) -> type:
    """A stand-in for a session whose graph was divided so, of a runtime that lists CUDA."""

    class Session:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def get_providers(self) -> list[str]:
            return [*providers, CPU.runtime_name]

        def disable_fallback(self) -> None: ...

        def get_provider_graph_assignment_info(self) -> Sequence[Part]:
            return parts

    return Session


def open_with(monkeypatch: pytest.MonkeyPatch, session: type) -> NodePlacement:
    monkeypatch.setattr(ort, "InferenceSession", session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA.runtime_name])
    return open_session(b"", ort.SessionOptions(), CUDA, threads=1).placement


def test_every_provider_has_an_engine_and_a_choice() -> None:
    assert set(PROVIDERS) == set(get_args(ProviderName)) == set(EDGE_ENGINES)
    assert ("auto", *PROVIDERS) == CHOICES
    assert [name for name, each in PROVIDERS.items() if not each.depends_on_cut] == ["cpu"]
    assert [name for name, each in PROVIDERS.items() if each.in_auto] == ["cuda"]


def test_nodes_that_are_left_to_the_cpu_are_counted_by_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [Part(CPU.runtime_name, ATTENTION)] * 2
    session = session_with(Part(CUDA.runtime_name, "MatMulNBits", "Mul"), *parts)
    placement = open_with(monkeypatch, session)
    assert placement == NodePlacement(num_nodes=4, on_cpu=((ATTENTION, 2),))
    assert placement.leaves(ATTENTION)
    assert not placement.leaves("Mul")
    assert placement.left_out == "GroupQueryAttention x2"


def test_a_provider_that_runs_no_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderError, match="cuda: runs none of the graph's 1 nodes"):
        open_with(monkeypatch, session_with(Part(CPU.runtime_name, "Mul")))


def test_a_provider_that_is_listed_and_does_not_start_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime gives the whole graph to the CPU then, and raises nothing."""
    with pytest.raises(ProviderError, match="cuda: does not start here"):
        open_with(monkeypatch, session_with(providers=()))


def test_an_onnxruntime_that_cannot_say_who_runs_what_is_believed_and_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = session_with()
    session.get_provider_graph_assignment_info = None  # type: ignore[attr-defined]
    assert not open_with(monkeypatch, session).is_known


def test_a_provider_that_is_not_there_comes_with_its_remedy() -> None:
    for provider in PROVIDERS.values():
        if provider in available_providers():
            require_listed(provider)
        else:
            with pytest.raises(ProviderError) as raised:
                require_listed(provider)
            assert provider.remedy in str(raised.value)
    assert available_providers()[0] is CPU


@pytest.mark.filterwarnings("ignore:Duplicate provider")
def test_a_real_session_says_that_its_provider_runs_all_nodes() -> None:
    placement = open_session(GRAPH, ort.SessionOptions(), OTHER, threads=1).placement
    assert placement.num_nodes > 10
    assert placement.on_cpu == ()


def test_a_graph_that_no_kernel_is_known_for_is_told_apart() -> None:
    unknown = GRAPH.replace(b"GroupQueryAttention", b"GroupQueryAttentiom")
    with pytest.raises(UnknownKernelError, match=f"onnxruntime {ort.__version__} refuses"):
        open_kernels(unknown, KernelSettings(1))


def test_the_cpu_runs_every_part_of_a_front() -> None:
    parts = provider_probe.parts_run(CPU)
    assert set(parts.values()) == {"provider"}
    assert len(parts) == 6


def test_what_nobody_runs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: bytes, settings: KernelSettings) -> Any:
        raise UnknownKernelError("too old")

    monkeypatch.setattr(provider_probe, "open_kernels", refuse)
    parts = provider_probe.parts_run(CPU)
    assert "attention over a 8-bit cache" in provider_probe.parts_text(parts, "nobody")
    assert provider_probe.parts_text(parts, "cpu") == ""


@pytest.mark.parametrize(
    ("installed", "clashes"),
    [
        ({}, False),
        ({"onnxruntime": "1"}, False),
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, True),
    ],
)
def test_two_packages_of_one_module_are_a_clash(installed: dict[str, str], clashes: bool) -> None:
    remedy = packages.clash_remedy(installed)
    assert bool(remedy) == clashes
    assert all(name in remedy for name in installed) or not clashes


def test_the_package_that_runs_these_tests_is_found() -> None:
    assert ort.__version__ in packages.installed_packages().values()
