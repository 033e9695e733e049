"""The experts of one layer as one node: ONNX Runtime's MoE in float32, QMoE with 4 or 8 bits.

Both take the softmax of all scores, keep the k largest, and divide these by their sum where the
model does. Rows of gate and up alternate, which is the only order that the CPU kernels know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from optimizer.export.front.blocks import CONTRIB, Graph
from optimizer.export.front.layer_form import ExpertForm

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """One layer's experts. name: of the node.

    up: reads [E, 2 I, D], rows of gate and up in turn. down: reads [E, D, I]. up_bias [E, 2 I],
    down_bias [E, D]: None where there is none.
    """

    name: str
    form: ExpertForm
    up: Callable[[], Tensor]
    down: Callable[[], Tensor]
    up_bias: F32 | None
    down_bias: F32 | None

    def biases(self, graph: Graph) -> tuple[str, str]:
        """Their names in the graph; empty where there is none."""
        names = []
        for part, values in (("up", self.up_bias), ("down", self.down_bias)):
            held = f"{self.name.strip('/').replace('/', '.')}.{part}.bias"
            names.append("" if values is None else graph.weight(held, values))
        return names[0], names[1]


def expert_node(
    graph: Graph, kind: str, inputs: Sequence[str], experts: Experts, **attributes: Any
) -> str:
    """Append the node of `kind` ("MoE" or "QMoE")."""
    form = experts.form
    if form.limit is not None:
        attributes["swiglu_limit"] = form.limit
    return graph.node(
        kind,
        inputs,
        experts.name,
        domain=CONTRIB,
        k=form.chosen,
        activation_type="swiglu",
        swiglu_fusion=1,
        normalize_routing_weights=int(form.normalized),
        activation_alpha=form.alpha,
        activation_beta=form.offset,
        **attributes,
    )
