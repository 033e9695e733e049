"""Multi-token layers are read as checkpoints have them, and guess what their formula says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cloud.drafting.head_drafter import CloudHeadDrafter
from cloud.drafting.head_spec import read_head
from cloud.drafting.mtp_head import MtpHead, try_head
from cloud.drafting.mtp_spec import MtpWeights
from cloud.drafting.session_drafts import RanRows
from cloud.errors import WeightsError
from cloud.kv.pool import KvPool, KvShape
from tests.cloud.drafting.mtp_layers import KINDS, LAYERS, VOCAB, WIDTH, mtp_tensors, write_mtp

EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def read(folder: Path) -> MtpWeights:
    weights = read_head(folder, hidden_size=WIDTH, vocab_size=VOCAB, num_layers=LAYERS)
    assert isinstance(weights, MtpWeights)
    return weights


def reference(weights: MtpWeights, states: Tensor, embedded: Tensor, head: Tensor) -> list[int]:
    """Two guesses beyond the last token: transformers' own layer over whole sequences."""
    layer = weights.layer
    kept = weights.config._attn_implementation
    weights.config._attn_implementation = "eager"
    found: list[int] = []
    try:
        for _ in range(2):
            norms = weights.norms
            joined = torch.cat([norms[0](embedded), norms[1](states)], -1)
            x = F.linear(joined, weights.join)[None]
            length = x.shape[1]
            mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
            places = weights.rotary(x, torch.arange(length)[None])
            own = layer(x, position_embeddings=places, attention_mask=mask)[0]
            found.append(int((norms[2](own[-1:]) @ head.T).argmax()))
            behind = norms[2](own) if weights.form.follows_normed else own
            states = torch.cat([states, behind[-1:]])
            embedded = torch.cat([embedded, head_rows(found[-1])])
    finally:
        weights.config._attn_implementation = kept
    return found


TABLE = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(9))


def head_rows(token_id: int) -> Tensor:
    return TABLE[token_id][None]


@EACH_KIND
@torch.inference_mode()
def test_it_guesses_what_the_layer_gives_over_the_whole_sequence(tmp_path: Path, kind: str) -> None:
    tensors = mtp_tensors(kind)
    for name in [*tensors]:
        if name.endswith("embed_tokens.weight"):
            tensors[name] = TABLE
    weights = read(write_mtp(tmp_path, kind, tensors=tensors))
    own_head = weights.head if weights.head is not None else TABLE.flip(0) * 3.0
    model = MtpHead(
        weights, embed=lambda token_ids: TABLE[list(token_ids)], logits=lambda x: x @ own_head.T
    )
    count, size = model.kv_heads
    shape = KvShape(num_layers=1, num_kv_heads=count, head_dim=size)
    pool = KvPool(shape, limit_bytes=shape.num_bytes(split=0, max_tokens=4096))
    drafter = CloudHeadDrafter(model, pool, norm=None)
    session = drafter.open(split=2, max_tokens=64, most=2)
    assert session is not None
    tokens = [3, 17, 250, 8, 91, 5]
    states = torch.randn(len(tokens) - 1, WIDTH, generator=torch.Generator().manual_seed(2))
    begin = 0
    for end in (3, len(states)):  # a frame of three rows, then one of two
        session.begin(begin)
        session.tap(states[begin:end])
        session.ran(
            RanRows(
                first_position=begin, token_ids=tuple(tokens[begin:end]), next_token=tokens[end]
            )
        )
        (found,) = drafter.draft([session], step_s=10.0)
        begin = end
    assert found is not None
    wanted = reference(weights, states, TABLE[tokens[1:]], own_head)
    assert [choices[0].token_id for choices in found.choices] == wanted[: len(found.choices)]
    assert len(found.choices) == 2
    session.close()
    assert pool.used_bytes == 0


@EACH_KIND
def test_it_is_the_checkpoints_layer_and_nothing_else_of_it(tmp_path: Path, kind: str) -> None:
    weights = read(write_mtp(tmp_path, kind))
    tensors = mtp_tensors(kind)
    layer = weights.layer.state_dict()
    down = [one for name, one in tensors.items() if name.endswith("experts.3.down_proj.weight")]
    assert torch.equal(layer["mlp.experts.down_proj"][3], down[0])
    up = [one for name, one in tensors.items() if name.endswith("experts.2.up_proj.weight")]
    assert torch.equal(layer["mlp.experts.gate_up_proj"][2, 32:], up[0])
    assert not any(one.is_meta for one in layer.values())


def _without(kind: str, ending: str, value: Tensor | None = None) -> dict[str, Tensor]:
    tensors = mtp_tensors(kind)
    (name,) = [one for one in tensors if one.endswith(ending)]
    del tensors[name]
    return tensors if value is None else {**tensors, name: value}


@pytest.mark.parametrize(
    ("ending", "value", "wrong"),
    [
        ("hnorm.weight", None, r"hnorm\.weight is missing"),
        ("experts.1.up_proj.weight", None, r"experts\.1\.up_proj\.weight is missing"),
        ("eh_proj.weight", torch.zeros(WIDTH, WIDTH), "eh_proj.weight has shape"),
        ("eh_proj.weight", torch.full((WIDTH, 2 * WIDTH), torch.nan), "not finite"),
        ("enorm.weight", torch.ones(WIDTH, dtype=torch.int32), "holds torch.int32"),
        ("shared_head.head.weight", torch.zeros(3, WIDTH), "has shape"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_in_a_line(
    tmp_path: Path, ending: str, value: Tensor | None, wrong: str
) -> None:
    folder = write_mtp(tmp_path, "glm4_moe", tensors=_without("glm4_moe", ending, value))
    with pytest.raises(WeightsError, match=wrong) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"hidden_size": 128}, "hidden_size is 128, the model's is 64"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"model_type": "mimo"}, "of 'mimo' are not read"),
        ({"model_type": ["x"]}, "are not read"),
        ({"num_attention_heads": "many"}, "no such layer"),
        ({"num_attention_heads": 6}, "has shape"),
        ({"n_routed_experts": 1 << 40}, "n_routed_experts is"),
        ({"head_dim": 1 << 40}, "head_dim is"),
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers is .*, the model's is 4"),
        ({"n_routed_experts": 8}, r"experts\.4\.gate_proj\.weight is missing"),
        ({"hidden_act": "nonsense"}, "no such layer"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_in_a_line(
    tmp_path: Path, changes: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(WeightsError, match=wrong) as caught:
        read(write_mtp(tmp_path, "glm4_moe", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"num_experts_per_tok": 99}, {"rms_norm_eps": "x"}])
def test_what_only_running_it_shows_is_refused_in_a_line(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    def load() -> None:
        weights = read(write_mtp(tmp_path, kind, **changes))
        head = MtpHead(weights, embed=lambda ids: TABLE[list(ids)], logits=lambda x: x @ TABLE.T)
        try_head(head, tmp_path, width=WIDTH)

    with pytest.raises(WeightsError, match="layer") as caught:
        load()
    assert "\n" not in str(caught.value)


def test_a_tensor_of_another_kind_of_layer_and_block_scales_are_refused(tmp_path: Path) -> None:
    tensors = mtp_tensors("deepseek_v3")
    strange = {f"model.layers.{LAYERS}.self_attn.indexer.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match="no tensor of this kind"):
        read(write_mtp(tmp_path / "a", "deepseek_v3", tensors={**tensors, **strange}))
    scales = {f"model.layers.{LAYERS}.mlp.gate.weight_scale_inv": torch.zeros(2)}
    with pytest.raises(WeightsError, match="convert it to bfloat16"):
        read(write_mtp(tmp_path / "b", "deepseek_v3", tensors={**tensors, **scales}))
