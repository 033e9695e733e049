"""The compiled layers: what NaN, infinity and huge values give, and what is refused before C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cloud.attention.native import row_histories
from cloud.kernel import library as native
from tests.cloud.attention.packed_batches import NUM_LAYERS, Heads, PackedBatch

_LOADED = native.load()
needs_kernel = pytest.mark.skipif(_LOADED is None, reason="the kernel was not built, or no AVX2")
NUM_INPUTS, NUM_OUTPUTS = 37, 70  # no whole vectors, no whole blocks
NAN, INFINITY = float("nan"), float("inf")
LARGEST = torch.finfo(torch.float32).max


@pytest.fixture(params=["AVX2", "AVX-512 VNNI"])
def kernel(request: pytest.FixtureRequest) -> native.NativeKernel:
    """Each instruction set that this processor has."""
    kind = ("none", "AVX2", "AVX-512 VNNI").index(request.param)
    if _LOADED is None or int(_LOADED._library.sp_available()) < kind:
        pytest.skip(f"no {request.param}")
    return native.NativeKernel(_LOADED._library, kind)


def some_rows(num_rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def some_weights(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and bias."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_OUTPUTS, NUM_INPUTS)
    codes = torch.randint(-127, 128, shape, generator=generator).to(torch.int8)
    scale = torch.rand(NUM_OUTPUTS, generator=generator) + 0.5
    return codes, scale, torch.randn(NUM_OUTPUTS, generator=generator)


@pytest.mark.parametrize("value", [NAN, -NAN, INFINITY, -INFINITY])
@pytest.mark.parametrize("place", [0, 15, 31, NUM_INPUTS - 1])
def test_a_row_that_is_not_finite_gives_nan_and_no_other_row_changes(
    kernel: native.NativeKernel, value: float, place: int
) -> None:
    packed = native.PackedLinear(*some_weights())
    rows = some_rows(5, NUM_INPUTS)
    expected = kernel.linear(rows, packed)
    rows[2, place] = value
    got = kernel.linear(rows, packed)
    assert got[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(got[others], expected[others])


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e32])
def test_finite_rows_of_any_size_keep_their_precision(
    kernel: native.NativeKernel, size: float
) -> None:
    codes, scale, _ = some_weights()
    scale = scale * 1e-6  # so that no output overflows
    rows = some_rows(3, NUM_INPUTS)
    rows *= size / float(rows.abs().max())
    got = kernel.linear(rows, native.PackedLinear(codes, scale, None))
    expected = rows.double() @ (codes.double() * scale.double()[:, None]).T
    # Below 2^-126 a row has the scale 2^-126, so its error is a part of that.
    floor = torch.finfo(torch.float32).tiny * 127 * float(scale.max())
    limit = 1e-3 * expected.abs().max() + floor * NUM_INPUTS
    assert float((got.double() - expected).abs().max()) <= float(limit)


@needs_kernel
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda codes, scale, bias: (codes.float(), scale, bias), "codes is"),
        (lambda codes, scale, bias: (codes[0], scale, bias), "codes is"),
        (lambda codes, scale, bias: (codes[:0], scale[:0], bias[:0]), "shape"),
        (lambda codes, scale, bias: (codes[:, :0], scale, bias), "shape"),
        (lambda codes, scale, bias: (codes, scale.half(), bias), "scale is"),
        (lambda codes, scale, bias: (codes, scale[1:], bias), "scale is"),
        (lambda codes, scale, bias: (codes, scale, bias[1:]), "bias is"),
        (lambda codes, scale, bias: (codes, scale, bias.double()), "bias is"),
    ],
)
def test_weights_that_the_kernel_would_read_wrongly_are_refused(
    change: Callable[..., tuple[Any, ...]], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        native.PackedLinear(*change(*some_weights()))


@needs_kernel
def test_weights_so_wide_that_a_sum_could_overflow_are_refused() -> None:
    codes = torch.zeros(1, native.MAX_EXACT_WIDTH + 1, dtype=torch.int8)
    with pytest.raises(ValueError, match="shape"):
        native.PackedLinear(codes, torch.ones(1), None)


def test_the_widest_weights_give_exact_sums(kernel: native.NativeKernel) -> None:
    width = native.MAX_EXACT_WIDTH
    codes = torch.full((2, width), 127, dtype=torch.int8)
    codes[1] = -128
    got = kernel.linear(
        torch.full((1, width), 127.0), native.PackedLinear(codes, torch.ones(2), None)
    )
    assert got[0].tolist() == pytest.approx([127 * 127 * width, -127 * 128 * width], rel=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(2, NUM_INPUTS + 1),
        torch.zeros(2, NUM_INPUTS - 1),
        torch.zeros(2, NUM_INPUTS, dtype=torch.float64),
        torch.zeros(NUM_INPUTS),
    ],
    ids=["wide", "narrow", "float64", "one dimension"],
)
def test_rows_of_another_type_or_shape_are_refused(
    kernel: native.NativeKernel, rows: Tensor
) -> None:
    with pytest.raises(ValueError, match="x is"):
        kernel.linear(rows, native.PackedLinear(*some_weights()))


def test_no_rows_give_no_rows(kernel: native.NativeKernel) -> None:
    packed = native.PackedLinear(*some_weights())
    assert kernel.linear(torch.zeros(0, NUM_INPUTS), packed).shape == (0, NUM_OUTPUTS)


class Attention:
    """One layer's attention of a packed batch, whose keys, values and queries a test may change."""

    layer = NUM_LAYERS - 1

    def __init__(self, heads: Heads, num_rows: list[int]) -> None:
        self.heads = heads
        self.batch = PackedBatch(0, heads, num_rows)
        arena = self.batch.step.arena
        keys_values = self.batch.new_keys_values(self.layer)
        for row, place in enumerate(self.places()):
            arena[place] = keys_values[row]

    def places(self) -> list[int]:
        """Row of the arena that each row of the step wrote."""
        step = self.batch.step
        return (step.places + self.layer * step.strides).tolist()

    def run(self, kernel: native.NativeKernel) -> Tensor:
        """[T, H d]."""
        heads, num_rows = self.heads, self.batch.num_rows
        histories = row_histories(self.batch.step.entries)
        wide = torch.zeros(num_rows, heads.query + 2 * heads.kv, heads.dim)
        wide[:, : heads.query] = self.batch.query
        mixed = torch.zeros(num_rows, heads.query, heads.dim)
        scores = torch.empty(native.MAX_THREADS * native.MAX_GROUP * histories.longest)
        kernel.attend(
            native.CStep(
                num_rows=num_rows,
                heads=heads.query,
                kv_heads=heads.kv,
                head_dim=heads.dim,
                arena=self.batch.step.arena.data_ptr(),
                first_piece=histories.first_piece.data_ptr(),
                pieces=histories.pieces.data_ptr(),
                wide=wide.data_ptr(),
                mixed=mixed.data_ptr(),
                scores=scores.data_ptr(),
                history=histories.longest,
            ),
            self.layer,
            heads.dim**-0.5,
        )
        return mixed.reshape(num_rows, -1)


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY, LARGEST])
@pytest.mark.parametrize("what", ["query", "key", "value"])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_what_a_row_sees_decides_its_attention_and_no_other_rows(
    kernel: native.NativeKernel, value: float, what: str, dim: int
) -> None:
    attention = Attention(Heads(query=4, kv=2, dim=dim), [1, 3, 1])
    expected = attention.run(kernel)
    assert expected.isfinite().all()
    spoiled = 2  # of rows 1 to 3, so row 3 sees it too
    if what == "query":
        attention.batch.query[spoiled] = value
    else:
        heads = slice(0, 2) if what == "key" else slice(2, 4)
        attention.batch.step.arena[attention.places()[spoiled], heads] = value
    got = attention.run(kernel)
    touched = [spoiled] if what == "query" else [spoiled, 3]
    if value != LARGEST:
        assert not got[touched].isfinite().all(dim=1).any()
    others = [row for row in range(5) if row not in touched]
    assert torch.equal(got[others], expected[others])


@pytest.mark.parametrize("size", [INFINITY, LARGEST])
def test_a_score_of_minus_infinity_is_not_taken_for_a_key_without_weight(
    kernel: native.NativeKernel, size: float
) -> None:
    """The key left float32's range, so nobody knows what its weight would be."""
    attention = Attention(Heads(query=4, kv=2, dim=64), [1, 3])
    attention.batch.query.abs_().add_(1.0)
    expected = attention.run(kernel)
    attention.batch.step.arena[attention.places()[2], :2] = -size
    got = attention.run(kernel)
    assert not got[2:].isfinite().all(dim=1).any()
    assert torch.equal(got[:2], expected[:2])


@pytest.mark.parametrize(
    "heads", [Heads(query=5, kv=2), Heads(dim=24), Heads(dim=144), Heads(query=0)]
)
def test_heads_without_loops_are_refused(kernel: native.NativeKernel, heads: Heads) -> None:
    step = native.CStep(
        num_rows=1, heads=heads.query, kv_heads=heads.kv, head_dim=heads.dim, history=16
    )
    with pytest.raises(ValueError, match="no loops"):
        kernel.attend(step, 0, 1.0)


def one_layer(width: int = 32, inner: int = 48, heads: int = 2, dim: int = 16) -> native.CLayer:
    """A layer's shape, without weights."""
    qkv = 3 * heads * dim
    return native.CLayer(
        qkv=native.CLinear(n=qkv, k=width),
        out=native.CLinear(n=width, k=heads * dim),
        gate_up=native.CLinear(n=2 * inner, k=width),
        down=native.CLinear(n=width, k=inner),
    )


def test_layers_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        native.layer_array([one_layer(), one_layer(inner=64)])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width": 33}, "of shape"),
        ({"inner": 47}, "of shape"),
        ({"heads": 4, "kv_heads": 4}, "of shape"),
        ({"rotary_dim": 15}, "to rotate"),
        ({"rotary_dim": 18}, "to rotate"),
        ({"num_rows": 1 << 40}, "too many"),
    ],
)
def test_a_step_that_does_not_fit_the_layers_is_refused(
    kernel: native.NativeKernel, change: dict[str, int], reason: str
) -> None:
    shape = {"num_rows": 1, "width": 32, "inner": 48, "heads": 2, "kv_heads": 2, "head_dim": 16}
    layers = native.layer_array([one_layer()])
    with pytest.raises(ValueError, match=reason):
        kernel.layers(layers, 0, [0], native.CStep(**(shape | change)))
    with pytest.raises(ValueError, match="of 1"):
        kernel.layers(layers, 0, [0, 1], native.CStep(**shape))
