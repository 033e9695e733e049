"""One weight that is not finite, at any place and precision, is refused by file and tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from optimizer.errors import ModelError
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.finite_values import check_finite
from optimizer.export.sources.model_source import open_source
from tests.optimizer.export.plans import make_plan
from tests.optimizer.export.sources.checkpoints import Tensors, copy_of
from tests.tiny_models import make_tiny_model

EMBEDDING = "model.embed_tokens.weight"
MATRIX = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.3.input_layernorm.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def put(name: str, value: float, dtype: torch.dtype) -> Callable[[Tensors], None]:
    """A change that writes one value into one tensor, all of them in `dtype`."""

    def change(tensors: Tensors) -> None:
        for key in tensors:
            tensors[key] = tensors[key].to(dtype)
        tensors[name].view(-1)[-1] = value

    return change


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("value", "found"),
    [(float("nan"), "NaN"), (float("inf"), "an infinite"), (float("-inf"), "an infinite")],
)
def test_what_is_not_finite_is_found_wherever_it_is(
    dtype: torch.dtype, value: float, found: str
) -> None:
    for place in (0, 5, 11):
        tensor = torch.ones(3, 4, dtype=dtype)
        check_finite(tensor, "x: y")
        tensor.view(-1)[place] = value
        with pytest.raises(ModelError, match=f"x: y holds {found}"):
            check_finite(tensor, "x: y")


def test_a_value_fits_exactly_where_its_conversion_is_finite() -> None:
    for value in (65504.0, 65519.0, 65520.0, 1e30, 3.39e38, 3.4e38, -65520.0):
        for kind in (torch.float16, torch.bfloat16, torch.float32):
            tensor = torch.tensor([0.5, value])
            if torch.isfinite(tensor.to(kind)).all():
                check_finite(tensor, "x", fits=kind)
            else:
                with pytest.raises(ModelError, match=f"{str(kind).removeprefix('torch.')} cannot"):
                    check_finite(tensor, "x", fits=kind)


@pytest.mark.parametrize("split", [0, 2, 4])
@pytest.mark.parametrize("name", [EMBEDDING, MATRIX, NORM])
@pytest.mark.parametrize(("front_bits", "back_bits"), [(4, 8), (16, 16), (32, 32)])
def test_a_nan_is_refused_at_every_split_and_precision(
    folder: Path, tmp_path: Path, split: int, name: str, front_bits: int, back_bits: int
) -> None:
    source = open_source(copy_of(folder, tmp_path / "m", put(name, float("nan"), torch.bfloat16)))
    plan = make_plan(source, split, front_bits=front_bits, back_bits=back_bits)
    with pytest.raises(ModelError, match=rf"model\.safetensors: {name} holds NaN"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)
    with pytest.raises(ModelError, match=rf"{name} holds NaN"):
        source.load_model()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("split", [0, 2, 4])
def test_what_float16_cannot_hold_is_refused_for_a_front_of_16_bits(
    folder: Path, tmp_path: Path, split: int
) -> None:
    source = open_source(copy_of(folder, tmp_path / "m", put(EMBEDDING, 1.5e6, torch.bfloat16)))
    plan = make_plan(source, split, front_bits=16)
    with pytest.raises(ModelError, match=rf"{EMBEDDING} holds 1\.499e\+06, which float16 cannot"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)
    wide = make_plan(source, split, front_bits=32)
    build_bundle(source, wide, tmp_path / "out", progress=lambda stage: None)


def test_what_bfloat16_rounds_to_infinity_is_refused_for_a_back_of_16_bits(
    folder: Path, tmp_path: Path
) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    source = open_source(copy_of(folder, tmp_path / "m", put(name, 3.4e38, torch.float32)))
    plan = make_plan(source, 1, back_bits=16)
    with pytest.raises(ModelError, match=rf"{name} holds 3\.4e\+38, which bfloat16 cannot"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)


def test_what_float32_cannot_hold_is_refused_before_it_is_converted(
    folder: Path, tmp_path: Path
) -> None:
    source = open_source(copy_of(folder, tmp_path / "m", put(EMBEDDING, 1e300, torch.float64)))
    plan = make_plan(source, 0)
    with pytest.raises(ModelError, match=r"holds 1e\+300, which float32 cannot"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)


def test_scales_of_rounded_weights_that_overflow_are_refused(folder: Path, tmp_path: Path) -> None:
    """The range of a block is twice its largest value, and float32 cannot hold that."""

    def change(tensors: Tensors) -> None:
        tensors[EMBEDDING].view(-1)[:2] = torch.tensor([3.3e38, -3.3e38])

    source = open_source(copy_of(folder, tmp_path / "m", change))
    plan = make_plan(source, 0, front_bits=8)
    with pytest.raises(ModelError, match=r"embed_tokens\.weight\.\w+ is not finite"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)


def test_weights_that_make_a_sample_text_infinite_are_refused(folder: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"].mul_(1e30)

    source = open_source(copy_of(folder, tmp_path / "m", change))
    plan = make_plan(source, 2, front_bits=4)
    with pytest.raises(ModelError, match="sample text are not finite"):
        build_bundle(source, plan, tmp_path / "out", progress=lambda stage: None)
