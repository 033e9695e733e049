"""The node of a layer's experts computes what its rounded weights mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.front.blocks import Graph, InlineStore
from optimizer.export.front.expert_node import Experts
from optimizer.export.front.layer_form import ExpertForm
from optimizer.export.front.matrices import StoredMatrices
from optimizer.export.front.rounding import round_rows

COUNT, CHOSEN, WIDTH, INNER, ROWS = 5, 2, 64, 96, 7
PLAIN = ExpertForm(count=COUNT, chosen=CHOSEN, normalized=False, alpha=1.0, offset=0.0, limit=None)
BOUNDED = ExpertForm(
    count=COUNT, chosen=CHOSEN, normalized=True, alpha=1.702, offset=1.0, limit=2.0
)


class Store(InlineStore):
    """Parts are joined."""

    def put_parts(self, name: str, dtype: Any, shape: Any, parts: Any) -> Any:
        return self.put(name, np.concatenate(list(parts)).reshape(shape).astype(dtype))


def meant(matrices: Tensor, bits: int) -> Tensor:
    """The weights [E, N, K] that codes, scales and zero points stand for."""
    count, outputs, inputs = matrices.shape
    if bits > 8:
        return matrices if bits == 32 else matrices.half().float()
    rounded = round_rows(matrices.reshape(-1, inputs), torch.ones(inputs), bits, 32)
    codes = rounded.codes.long()
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    zeros = torch.full(rounded.scales.shape, 1 << (bits - 1))
    if rounded.zeros is not None:
        packed = rounded.zeros.long()
        zeros = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        zeros = zeros[:, : rounded.scales.shape[1]]
    values = (codes - zeros[..., None]) * rounded.scales[..., None]
    return values.reshape(count, outputs, inputs)


def expected(form: ExpertForm, rows: Tensor, scores: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Row by row, expert by expert; without biases."""
    out = torch.zeros_like(rows)
    for row in range(len(rows)):
        shares, experts = scores[row].softmax(-1).topk(form.chosen)
        if form.normalized:
            shares = shares / shares.sum()
        for share, expert in zip(shares, experts.tolist(), strict=True):
            both = up[expert] @ rows[row]
            gate, linear = both[0::2], both[1::2]
            if form.limit is not None:
                gate = gate.clamp(max=form.limit)
                linear = linear.clamp(-form.limit, form.limit)
            inner = gate * torch.sigmoid(form.alpha * gate) * (linear + form.offset)
            out[row] += share * (down[expert] @ inner)
    return out


def computed(
    form: ExpertForm, bits: int, rows: Tensor, scores: Tensor, up: Tensor, down: Tensor
) -> npt.NDArray[np.float32]:
    graph = Graph(Store())
    matrices = StoredMatrices(Store(), {}, accuracy_level=1)
    matrices.bits = bits
    graph.input("rows", TensorProto.FLOAT, [1, ROWS, WIDTH])
    graph.input("scores", TensorProto.FLOAT, [ROWS, COUNT])
    experts = Experts(
        name="/experts",
        form=form,
        up=lambda: up,
        down=lambda: down,
        up_bias=None,
        down_bias=None,
    )
    out = matrices.experts(graph, "rows", "scores", experts)
    graph.output(out, TensorProto.FLOAT, [1, ROWS, WIDTH])
    session = ort.InferenceSession(
        graph.model().SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {"rows": rows[None].numpy(), "scores": scores.numpy()}
    found: npt.NDArray[np.float32] = session.run(None, feed)[0][0]
    return found


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
@pytest.mark.parametrize("form", [PLAIN, BOUNDED], ids=["plain", "bounded"])
def test_the_node_computes_with_the_rounded_weights(form: ExpertForm, bits: int) -> None:
    torch.manual_seed(bits)
    rows, scores = torch.randn(ROWS, WIDTH), torch.randn(ROWS, COUNT)
    up, down = 0.3 * torch.randn(COUNT, 2 * INNER, WIDTH), 0.3 * torch.randn(COUNT, WIDTH, INNER)
    wanted = expected(form, rows, scores, meant(up, bits), meant(down, bits))
    found = torch.from_numpy(computed(form, bits, rows, scores, up, down))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_experts_of_a_width_that_blocks_do_not_divide_are_refused() -> None:
    torch.manual_seed(1)
    up, down = torch.randn(COUNT, 2 * INNER, 40), torch.randn(COUNT, 40, INNER)
    with pytest.raises(ModelError, match="experts of 40 inputs, not a multiple of 32"):
        computed(PLAIN, 4, torch.randn(ROWS, 40), torch.randn(ROWS, COUNT), up, down)
