"""Opens ONNX Runtime sessions with a provider, and says which nodes the provider really runs.

ONNX Runtime gives the nodes that a provider cannot run to the CPU, and the whole graph where the
provider does not start. It says neither. Here both are found out: the first is counted from ONNX
Runtime's own record of who got which node, the second is an error.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import onnxruntime as ort

from hwprofiles.errors import ProviderError
from hwprofiles.providers.table import CPU, PROVIDERS, ExecutionProvider

ATTENTION: Final = "GroupQueryAttention"  # the node that reads and writes the cache
_RECORD_NODES: Final = "session.record_ep_graph_assignment_info"
_QUIET, _USUAL = 4, 2  # of ONNX Runtime's own logger: only what ends the process; warnings


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlacement:
    """Who runs a graph's nodes. num_nodes: all. on_cpu: kinds of node that the provider left to the
    CPU, and how many of each; empty for the CPU's own provider. is_known: whether this ONNX Runtime
    could say (from 1.24 on)."""

    num_nodes: int = 0
    on_cpu: tuple[tuple[str, int], ...] = ()
    is_known: bool = True

    @property
    def num_on_cpu(self) -> int:
        """How many nodes were left to the CPU."""
        return sum(count for _, count in self.on_cpu)

    @property
    def left_out(self) -> str:
        """The nodes that were left to the CPU, such as 'GroupQueryAttention x10'."""
        return ", ".join(f"{kind} x{count}" for kind, count in self.on_cpu)

    def leaves(self, kind: str) -> bool:
        """Whether a node of this kind was left to the CPU."""
        return any(kind == left for left, _ in self.on_cpu)


class ProviderSession(NamedTuple):
    """An open session and who runs its nodes."""

    session: ort.InferenceSession
    placement: NodePlacement


def available_providers() -> tuple[ExecutionProvider, ...]:
    """The providers that the installed ONNX Runtime lists, in the table's order.

    One that is listed may still not start: its libraries or its device may be missing.
    """
    listed = set(ort.get_available_providers())
    return tuple(each for each in PROVIDERS.values() if each.runtime_name in listed)


def require_listed(provider: ExecutionProvider) -> None:
    """ProviderError with the remedy where the installed ONNX Runtime does not have it."""
    if provider.runtime_name not in ort.get_available_providers():
        raise ProviderError(
            f"{provider.name}: this onnxruntime {ort.__version__} has no {provider.runtime_name}; "
            f"{provider.remedy}"
        )


def open_session(
    model: str | bytes,
    options: ort.SessionOptions,
    provider: ExecutionProvider,
    *,
    threads: int,
    may_run_none: bool = False,
) -> ProviderSession:
    """Open `model`, a path or the bytes, with `provider`, and with the CPU for what it leaves.

    threads: of its kernels. Raises ProviderError where the provider is not there or does not start,
    and where it runs no node of the graph, unless it `may_run_none`. Whatever ONNX Runtime raises
    for the graph itself goes through.
    """
    if provider is CPU:
        session = ort.InferenceSession(model, options, providers=[CPU.runtime_name])
        return ProviderSession(session, NodePlacement())
    require_listed(provider)
    options.add_session_config_entry(_RECORD_NODES, "1")
    chosen = [(provider.runtime_name, provider.options(threads)), CPU.runtime_name]
    ort.set_default_logger_severity(_QUIET)  # the error below says what it would print
    try:
        session = ort.InferenceSession(model, options, providers=chosen, enable_fallback=0)
    finally:
        ort.set_default_logger_severity(_USUAL)
    session.disable_fallback()  # a kernel that fails is an error, not another provider's task
    if session.get_providers()[0] != provider.runtime_name:
        raise ProviderError(f"{provider.name}: does not start here ({_why_not(provider)})")
    placement = _placement(session, provider)
    runs_none = placement.is_known and placement.num_on_cpu == placement.num_nodes
    if runs_none and not may_run_none:
        raise ProviderError(
            f"{provider.name}: runs none of the graph's {placement.num_nodes} nodes "
            f"({placement.left_out})"
        )
    return ProviderSession(session, placement)


def _placement(session: ort.InferenceSession, provider: ExecutionProvider) -> NodePlacement:
    """Who got which node, as ONNX Runtime recorded it when it divided the graph."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # an older version has no record, and says so by one error or another
        return NodePlacement(is_known=False)
    left: Counter[str] = Counter()
    num_nodes = 0
    for part in parts:
        kinds = [node.op_type for node in part.get_nodes()]
        num_nodes += len(kinds)
        if part.ep_name != provider.runtime_name:
            left.update(kinds)
    return NodePlacement(num_nodes=num_nodes, on_cpu=tuple(left.most_common()))


def _why_not(provider: ExecutionProvider) -> str:
    """What the system says of the provider's library; ONNX Runtime puts that only into its log."""
    folder = Path(ort.__file__).parent / "capi"
    shared = sorted(folder.glob("*onnxruntime_providers_shared.*"))
    own = sorted(folder.glob(f"*onnxruntime_providers_{provider.library}.*"))
    if provider.library and own:
        try:
            for library in (*shared[:1], own[0]):
                ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return "its libraries or its device are missing"
