"""The weights of one layer as the front's graph has them: joined, reordered, padded, float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optimizer.errors import ModelError
from optimizer.export.front.blocks import Norm
from optimizer.export.front.layer_form import DecoderForm
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.packed.matrix_grid import QuantizedMatrix
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME
from optimizer.families import ExpertTraits

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LayerMatrix:
    """A matrix [N, K], outputs by inputs, that is read when it is needed.

    read: its values, in float32 or in their stored type. grid: the same values on the grid that
    the checkpoint holds them in, None where it has no grid or one that the kernels do not take.
    """

    read: Callable[[], Tensor]
    grid: Callable[[], QuantizedMatrix | None] = lambda: None


class LayerWeights:
    """Reads a layer's tensors one at a time. Matrices are [N, K], outputs by inputs.

    fits: the type that the values will be converted to.
    """

    def __init__(
        self, source: ModelSource, form: DecoderForm, layer: int, fits: torch.dtype
    ) -> None:
        self._source = source
        self._form = form
        self._fits = fits
        self._prefix = f"{form.prefix}.layers.{layer}"
        self._mlp = form.family.mlp_module

    def qkv(self) -> LayerMatrix:
        """Queries, keys and values in one."""
        return LayerMatrix(lambda: self._joined("weight"), self._joined_grid)

    def qkv_bias(self) -> F32 | None:
        """Its bias, None where there is none."""
        if not self._has(f"self_attn.{self._form.family.attention[0]}.bias"):
            return None
        return _array(self._joined("bias"))

    def out(self) -> LayerMatrix:
        """Attention's output."""
        name = f"self_attn.{self._form.family.attention[-1]}.weight"
        layout = self._form.layout
        if layout.plain_order == tuple(range(layout.head_dim)):
            return self._update(name)
        return LayerMatrix(lambda: self._scaled(layout.spread(self._read(name).T, rotated=False).T))

    def out_bias(self) -> F32 | None:
        """Its bias."""
        return self._bias(f"self_attn.{self._form.family.attention[-1]}", is_update=True)

    def gate_up(self) -> dict[str, LayerMatrix]:
        """The matrices that go up, by the part's name in the graph."""
        names = [f"{self._mlp}.{name}.weight" for name in self._form.family.mlp[:-1]]
        if not self._form.family.gated:
            return {"up_proj": self._plain(names[0])}
        if len(names) == 2:
            return {"gate_proj": self._plain(names[0]), "up_proj": self._plain(names[1])}
        return {"gate_proj": self._half(names[0], 0), "up_proj": self._half(names[0], 1)}

    def gate_up_bias(self) -> dict[str, F32 | None]:
        """Their biases."""
        names = self._form.family.mlp[:-1]
        if not self._form.family.gated:
            return {"up_proj": self._bias(f"{self._mlp}.{names[0]}")}
        if len(names) == 2:
            gate, up = (self._bias(f"{self._mlp}.{name}") for name in names)
            return {"gate_proj": gate, "up_proj": up}
        both = self._bias(f"{self._mlp}.{names[0]}")
        halves = (None, None) if both is None else np.split(both, 2)
        return {"gate_proj": halves[0], "up_proj": halves[1]}

    def down(self) -> LayerMatrix:
        """The matrix that goes down."""
        return self._update(f"{self._mlp}.{self._form.family.mlp[-1]}.weight")

    def down_bias(self) -> F32 | None:
        """Its bias."""
        return self._bias(f"{self._mlp}.{self._form.family.mlp[-1]}", is_update=True)

    def router(self) -> tuple[F32, F32 | None]:
        """The scores of experts: matrix [D, E], and the bias."""
        name = f"mlp.{self._experts.router}"
        return _array(self._read(f"{name}.weight").T), self._bias(name)

    def experts_up(self) -> Tensor:
        """Gate and up of all experts [E, 2 I, D], their rows in turn, in the stored type."""
        return self._alternating(self._expert_matrix("gate_up_proj"))

    def experts_down(self) -> Tensor:
        """The matrices of all experts that go down, [E, D, I]."""
        return self._expert_matrix("down_proj")

    def experts_up_bias(self) -> F32 | None:
        """[E, 2 I], in the order of `experts_up`."""
        bias = self._expert_bias("gate_up_proj")
        return None if bias is None else _array(self._alternating(bias))

    def experts_down_bias(self) -> F32 | None:
        """[E, D]."""
        bias = self._expert_bias("down_proj")
        return None if bias is None else _array(bias)

    @property
    def _experts(self) -> ExpertTraits:
        traits = self._form.family.experts
        if traits is None:
            raise ModelError(f"{self._prefix}: the family has no experts")
        return traits

    def _expert_matrix(self, part: str) -> Tensor:
        name = f"{self._prefix}.mlp.experts.{part}"
        matrix = self._source.read(name, fits=self._fits)
        return matrix.transpose(1, 2) if self._experts.transposed else matrix

    def _expert_bias(self, part: str) -> Tensor | None:
        name = f"mlp.experts.{part}_bias"
        return self._read(name) if self._has(name) else None

    def _alternating(self, values: Tensor) -> Tensor:
        """Outputs of gate and up in turn, along axis 1."""
        if self._experts.interleaved:
            return values
        return torch.stack(values.chunk(2, dim=1), dim=2).flatten(1, 2)

    def norm(self, name: str) -> Norm:
        """A norm of the residual stream."""
        return stream_norm(self._source, self._form, f"{self._prefix}.{name}", self._fits)

    def head_norm(self, which: str) -> Norm:
        """The norm of queries ("q") or keys ("k"), for padded heads.

        Padding makes a mean of squares smaller: by head_dim / size. Weight and epsilon make up for
        it.
        """
        layout = self._form.layout
        weight = self._read(f"self_attn.{which}_norm.weight")
        if self._form.family.offset_norms:
            weight = weight + 1.0
        share = layout.head_dim / layout.size
        spread = layout.spread(weight, rotated=True) * share**0.5
        return Norm(is_rms=True, eps=self._form.query_eps * share, weight=_array(spread))

    def sinks(self) -> F32 | None:
        """Each head's score that belongs to no token."""
        return _array(self._read("self_attn.sinks")) if self._form.family.sinks else None

    def _joined(self, part: str) -> Tensor:
        """Weights or biases of queries, keys and values in the device's order of channels."""
        form = self._form
        layout = form.layout
        names = form.family.attention[:-1]
        tensors = [self._read(f"self_attn.{name}.{part}") for name in names]
        if len(tensors) == 1:
            heads = (form.num_heads, form.num_kv_heads, form.num_kv_heads)
            tensors = list(tensors[0].split([count * layout.head_dim for count in heads]))
        return torch.cat(
            [layout.spread(rows, rotated=index < 2) for index, rows in enumerate(tensors)]
        )

    def _joined_grid(self) -> QuantizedMatrix | None:
        """`_joined` of the matrices' grids."""
        form = self._form
        layout = form.layout
        names = form.family.attention[:-1]
        grids = [self._grid(f"self_attn.{name}.weight") for name in names]
        if len(grids) == 1:
            heads = (form.num_heads, form.num_kv_heads, form.num_kv_heads)
            ends = list(accumulate(count * layout.head_dim for count in heads))
            spans = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
            grids = [grids[0] and grids[0].by_rows(itemgetter(span)) for span in spans]
        spread = [
            grid and grid.by_rows(partial(layout.spread, rotated=index < 2))
            for index, grid in enumerate(grids)
        ]
        return QuantizedMatrix.joined(spread)

    def _plain(self, name: str) -> LayerMatrix:
        """A matrix as it is stored."""
        return LayerMatrix(lambda: self._read(name), lambda: self._grid(name))

    def _half(self, name: str, index: int) -> LayerMatrix:
        """The first or second half of a matrix's rows."""

        def grid() -> QuantizedMatrix | None:
            whole = self._grid(name)
            return None if whole is None else whole.by_rows(lambda rows: rows.chunk(2)[index])

        return LayerMatrix(lambda: self._read(name).chunk(2)[index], grid)

    def _update(self, name: str) -> LayerMatrix:
        """A matrix whose product is added to the stream, times the form's factor."""

        def grid() -> QuantizedMatrix | None:
            found = self._grid(name)
            return None if found is None else found.scaled(self._form.residual_factor)

        return LayerMatrix(lambda: self._scaled(self._read(name)), grid)

    def _grid(self, name: str) -> QuantizedMatrix | None:
        return self._source.quantized_matrix(f"{self._prefix}.{name}")

    def _scaled(self, update: Tensor) -> Tensor:
        factor = self._form.residual_factor
        return update if factor == 1.0 else update * factor

    def _bias(self, name: str, *, is_update: bool = False) -> F32 | None:
        if not self._has(f"{name}.bias"):
            return None
        bias = self._read(f"{name}.bias")
        return _array(self._scaled(bias) if is_update else bias)

    def _has(self, name: str) -> bool:
        return f"{self._prefix}.{name}" in self._source.tensor_names

    def _read(self, name: str) -> Tensor:
        return self._source.read(f"{self._prefix}.{name}", fits=self._fits).float()


def stream_norm(source: ModelSource, form: DecoderForm, name: str, fits: torch.dtype) -> Norm:
    """A norm of the residual stream by its tensors' name; one without tensors has ones."""

    def read(part: str) -> Tensor | None:
        full = f"{name}.{part}"
        return source.read(full, fits=fits).float() if full in source.tensor_names else None

    weight, bias = read("weight"), read("bias")
    if weight is None:
        weight = torch.ones(form.hidden_size)
    elif form.family.offset_norms:
        weight = weight + 1.0
    return Norm(
        is_rms=form.family.norm_kind == "rms",
        eps=form.norm_eps,
        weight=_array(weight),
        bias=None if bias is None else _array(bias),
    )


def embedding_rows(source: ModelSource, fits: torch.dtype) -> Tensor:
    """The embedding [V, D] in its stored type."""
    return source.read(EMBEDDING_NAME, fits=fits)


def head_rows(source: ModelSource, fits: torch.dtype) -> Tensor:
    """The head's matrix [V, D] in its stored type; the embedding where there is no other."""
    name = HEAD_NAME if HEAD_NAME in source.tensor_names else EMBEDDING_NAME
    return source.read(name, fits=fits)


def head_bias(source: ModelSource) -> F32 | None:
    """The head's bias, None where there is none."""
    name = HEAD_NAME.removesuffix("weight") + "bias"
    return _array(source.read(name).float()) if name in source.tensor_names else None


def _array(tensor: Tensor) -> F32:
    return tensor.contiguous().numpy()
