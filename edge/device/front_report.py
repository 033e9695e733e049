"""What a front runs on: said once, in one line and in `run --json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hwprofiles.providers.sessions import NodePlacement
from hwprofiles.providers.table import CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontReport:
    """provider: its name. num_nodes, on_cpu: of all segments that were loaded first, see
    NodePlacement. row_difference: how far its rows are from the CPU's, the median over some rows of
    the difference's length over the row's; 0 for the CPU. depends_on_cut: whether the bits of a row
    may depend on how a prompt is cut. not_taken: why `auto` took none of the providers before it.
    arithmetic: what the products of a front with 16-bit weights are computed in, "fp16" or "fp32";
    "" for other fronts. widened: why such weights take 32 bits, "" where they do not.
    model_difference: of rows in 16 bits from the model's own, like `row_difference`.
    streamed_layers, streamed_bytes: what every pass reads from storage.
    """

    provider: str = CPU.name
    num_nodes: int = 0
    on_cpu: tuple[tuple[str, int], ...] = ()
    is_known: bool = True
    row_difference: float = 0.0
    depends_on_cut: bool = False
    not_taken: tuple[str, ...] = ()
    arithmetic: str = ""
    widened: str = ""
    model_difference: float = 0.0
    streamed_layers: int = 0
    streamed_bytes: int = 0

    @property
    def may_adapt_chunks(self) -> bool:
        """Whether a prompt may be cut by what is measured. Not where a row depends on the cut, and
        not where every chunk reads layers from storage: then few large ones are best."""
        return not self.depends_on_cut and not self.streamed_layers

    @property
    def line(self) -> str:
        """One line for people; empty where the CPU runs all and nothing else was tried."""
        parts = list(self.not_taken)
        if self.provider != CPU.name:
            parts.append(f"{self.provider} runs {self._nodes}, and its rows are {self._difference}")
        elif parts:
            parts.append("the CPU runs the front")
        if self.widened:
            parts.append(f"the front's 16-bit weights are widened to 32 bits: {self.widened}")
        if self.streamed_layers:
            parts.append(
                f"{self.streamed_layers} layers do not fit in memory: every step reads their "
                f"{self.streamed_bytes / 2**20:.0f} MiB from storage"
            )
        return "; ".join(parts)

    @property
    def _nodes(self) -> str:
        if not self.is_known:
            return "the front (this onnxruntime does not say which nodes)"
        left = sum(count for _, count in self.on_cpu)
        text = f"{self.num_nodes - left} of the front's {self.num_nodes} nodes"
        named = ", ".join(f"{kind} x{count}" for kind, count in self.on_cpu)
        return f"{text} (the CPU: {named})" if left else text

    @property
    def _difference(self) -> str:
        return f"{100 * self.row_difference:.2g} % from the CPU's"

    def to_json(self) -> dict[str, Any]:
        """The object that `run --json` has in `front`."""
        computed = self._computed
        if self.provider == CPU.name:
            streamed = {
                "streamed_layers": self.streamed_layers,
                "streamed_bytes": self.streamed_bytes,
            }
            return {
                "provider": self.provider,
                "not_taken": list(self.not_taken),
                **computed,
                **(streamed if self.streamed_layers else {}),
            }
        return {
            "provider": self.provider,
            "nodes": self.num_nodes if self.is_known else None,
            "nodes_on_cpu": dict(self.on_cpu) if self.is_known else None,
            "row_difference": self.row_difference,
            "rows_depend_on_cut": self.depends_on_cut,
            "not_taken": list(self.not_taken),
            **computed,
        }

    @property
    def _computed(self) -> dict[str, Any]:
        """What a front with 16-bit weights is computed in; nothing of other fronts."""
        if not self.arithmetic:
            return {}
        return {"arithmetic": self.arithmetic, "widened": self.widened or None}


def merged(placements: Sequence[NodePlacement]) -> NodePlacement:
    """Of several segments together."""
    left: Counter[str] = Counter()
    for placement in placements:
        left.update(dict(placement.on_cpu))
    return NodePlacement(
        num_nodes=sum(placement.num_nodes for placement in placements),
        on_cpu=tuple(left.most_common()),
        is_known=all(placement.is_known for placement in placements),
    )
