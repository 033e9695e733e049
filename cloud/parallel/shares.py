"""Which part of each tensor a rank of a tensor-parallel group holds, from transformers' own plan.

A plan names the style of a module. `colwise`: a rank holds some outputs of a linear layer.
`rowwise`: it holds the matching inputs of the next one, and the ranks' results are added (Shoeybi
et al. 2019, arXiv:1909.08053, section 3). A rank thus has whole attention heads, and some channels
of the MLP. Its modules are those of a smaller model: a config with fewer heads and channels makes
them. Every tensor's shape there is compared with what the plan says, so a family that divides its
layers in another way is refused and never computed wrongly.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from cloud.engine.back_weights import model_skeleton, read_config
from cloud.engine.tensor_files import CODES_SUFFIX, SCALE_SUFFIX, TensorCut
from cloud.errors import WeightsError
from optimizer.families import head_dim_of

_OUTPUTS: Final = "colwise"
# Plans gather the outputs of joined projections. Here a rank holds its share of every part of
# them, so the inputs of the next layer are its share already, and nothing is gathered.
_JOINED_OUTPUTS: Final = "colwise_gather_output"
_INPUTS: Final = ("rowwise", "rowwise_split_input")
_WHOLE: Final = ("replicated_with_grad_allreduce",)
# The config's fields that count what is divided.
_HEADS: Final = ("num_attention_heads", "num_key_value_heads")
_CHANNELS: Final = "intermediate_size"
_EXPERT_CHANNELS: Final = "moe_intermediate_size"
# All experts of a layer, as matrices [E, 2 I, D] (gate before up) and [E, D, I].
_EXPERTS: Final = "moe_tp_experts"
_EXPERT_STYLES: Final = {"gate_up_proj": "packed_colwise", "down_proj": "rowwise"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShares:
    """What one rank holds.

    config: of the smaller model that its layers are. cuts: by name, tensors of which it holds a
    part; it holds all others whole. added: names of the modules whose results the ranks add.
    head_rows: rows [begin, end) of the head that each rank holds.
    """

    config: Any
    cuts: Mapping[str, TensorCut]
    added: frozenset[str]
    head_rows: tuple[tuple[int, int], ...]


def check_divisible(folder: Path, size: int) -> None:
    """Raise WeightsError, in one line, where the model of `folder` cannot be divided by `size`.

    Reads `config.json` only.
    """
    config = read_config(folder)
    divide(config, model_skeleton(folder, config, torch.float32), folder, rank=0, size=size)


def divide(config: Any, skeleton: Any, folder: Path, *, rank: int, size: int) -> RankShares:
    """What rank `rank` of `size` holds. skeleton: the whole model, without weights.

    Raises WeightsError for a model without a plan, with a style that is not known, with heads or
    channels that `size` does not divide, and where plan and layers disagree.
    """
    local = _local_config(config, size)
    cuts: dict[str, TensorCut] = {}
    added: set[str] = set()
    plan = {_pattern(name): style for name, style in (skeleton._tp_plan or {}).items()}

    def style_of(name: str) -> str | None:
        return next((plan[one] for one in plan if one.fullmatch(name)), None)

    layers = _layers_name(skeleton)
    for name, module in skeleton.named_modules():
        style = style_of(name)
        if style is None or not name.startswith(layers) or style in _WHOLE:
            continue
        if style == _EXPERTS and all(
            style_of(f"{name}.{part}") == known for part, known in _EXPERT_STYLES.items()
        ):
            cuts |= _expert_cuts(name, getattr(config, _EXPERT_CHANNELS, 0), rank, size)
            added.add(name)
            continue
        if not isinstance(module, nn.Linear):
            raise _refused(size, config, f"{name} is divided as {style!r}, which is not supported")
        if style in _INPUTS:
            cuts |= _input_cuts(name, module, rank, size)
            added.add(name)
            continue
        parts = _output_parts(name, style, config)
        if parts is None:
            raise _refused(size, config, f"{name} is divided as {style!r}, which is not supported")
        cuts |= _output_cuts(name, module, parts or (module.out_features,), rank, size)
    _check_shapes(config, skeleton, model_skeleton(folder, local, torch.float32), cuts, size)
    rows = tuple(
        (config.vocab_size * one // size, config.vocab_size * (one + 1) // size)
        for one in range(size)
    )
    return RankShares(config=local, cuts=cuts, added=frozenset(added), head_rows=rows)


def _local_config(config: Any, size: int) -> Any:
    """The config of the smaller model. A head keeps its channels, which a config may leave open."""
    local = copy.deepcopy(config)
    local.head_dim = head_dim_of(config)
    fields = [*_HEADS, _CHANNELS]
    if hasattr(config, _EXPERT_CHANNELS):
        fields.append(_EXPERT_CHANNELS)
    for field in fields:
        what = "heads" if field in _HEADS else "channels"
        count = getattr(config, field, None)
        if type(count) is not int or count % size:
            raise _refused(size, config, f"{field} is {count}: {size} does not divide these {what}")
        setattr(local, field, count // size)
    return local


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"\d+"))


def _layers_name(skeleton: Any) -> str:
    """What the names of all that lies in layers begin with."""
    layers = skeleton.get_decoder().layers
    return next(f"{name}." for name, module in skeleton.named_modules() if module is layers)


def _output_parts(name: str, style: str, config: Any) -> tuple[int, ...] | None:
    """Outputs of each part of a joined projection; none of a plain one. None: not known."""
    if style == _OUTPUTS:
        return ()
    if style == _JOINED_OUTPUTS and name.endswith(".qkv_proj"):
        queries, keys = (getattr(config, field) * head_dim_of(config) for field in _HEADS)
        return queries, keys, keys
    if style == _JOINED_OUTPUTS and name.endswith(".gate_up_proj"):
        return (config.intermediate_size,) * 2
    return None


def _output_cuts(
    name: str, module: nn.Linear, parts: tuple[int, ...], rank: int, size: int
) -> Iterator[tuple[str, TensorCut]]:
    """Of a matrix [out, in] and what belongs to its outputs."""
    ranges, start = [], 0
    for count in parts:
        ranges.append((start + count * rank // size, start + count * (rank + 1) // size))
        start += count
    cut = TensorCut(0, tuple(ranges), module.out_features)
    weight = f"{name}.weight"
    for one in (weight, weight + CODES_SUFFIX, weight + SCALE_SUFFIX, f"{name}.bias"):
        yield one, cut


def _input_cuts(
    name: str, module: nn.Linear, rank: int, size: int
) -> Iterator[tuple[str, TensorCut]]:
    """Of a matrix [out, in]. Its bias is added once, on rank 0."""
    width = module.in_features
    cut = TensorCut(1, ((width * rank // size, width * (rank + 1) // size),), width)
    weight = f"{name}.weight"
    yield weight, cut
    yield weight + CODES_SUFFIX, cut
    if rank > 0:
        whole = module.out_features
        yield f"{name}.bias", TensorCut(0, ((0, whole),), whole, is_zero=True)


def _expert_cuts(name: str, channels: int, rank: int, size: int) -> Iterator[tuple[str, TensorCut]]:
    """Of all experts' matrices: a rank has its channels of every expert."""
    begin, end = channels * rank // size, channels * (rank + 1) // size
    gate_up = TensorCut(1, ((begin, end), (channels + begin, channels + end)), 2 * channels)
    for suffix in ("", CODES_SUFFIX, SCALE_SUFFIX):
        yield f"{name}.gate_up_proj{suffix}", gate_up
    for suffix in ("", CODES_SUFFIX):
        yield f"{name}.down_proj{suffix}", TensorCut(2, ((begin, end),), channels)


def _check_shapes(
    config: Any, whole: Any, local: Any, cuts: Mapping[str, TensorCut], size: int
) -> None:
    """WeightsError unless the smaller model's tensors have the shapes that the plan gives them."""
    found = {name: tuple(tensor.shape) for name, tensor in local.named_parameters()}
    for name, tensor in whole.named_parameters():
        expected = list(tensor.shape)
        if (cut := cuts.get(name)) is not None:
            expected[cut.axis] = cut.num_kept
        if found.get(name) != tuple(expected):
            raise _refused(
                size,
                config,
                f"its plan leaves {name} at {expected}, its layers at {found.get(name)}",
            )


def _refused(size: int, config: Any, reason: str) -> WeightsError:
    return WeightsError(
        f"a model of type {config.model_type!r} cannot be divided by --tensor-parallel {size}: "
        f"{reason}"
    )
