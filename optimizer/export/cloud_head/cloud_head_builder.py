"""From a bundle to a bundle whose cloud drafts: corpus, training, and files as EAGLE has them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from optimizer.artifacts.bundle import DRAFT_HEAD_FOLDER, Bundle, record_files
from optimizer.errors import BuildError
from optimizer.export.cloud_head.corpus import (
    HELD_OUT_ROWS,
    LENGTH_STEP,
    LONG_ANSWER,
    LONGEST_QUESTION,
    ROWS_PER_SHARD,
    WINDOW,
    PassageRef,
    make_passages,
)
from optimizer.export.cloud_head.head import EPSILON, CloudHead, HeadSizes
from optimizer.export.cloud_head.least_squares import begin_linear
from optimizer.export.cloud_head.prompts import HELD_OUT, TOPICS, TRAINED
from optimizer.export.cloud_head.training import (
    CloudTrainOptions,
    Embed,
    train_cloud_head,
)
from optimizer.export.disk_faults import naming_the_disk
from optimizer.export.draft_head.head import frequent_tokens, output_embedding
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.tensor_names import EMBEDDING_NAME
from optimizer.export.working_folder import working_folder

Progress = Callable[[str, int, int], None]

FILES: Final = ("model.safetensors", "config.json", "head.json")
HELD_OUT_EVERY: Final = 16
# By the head's name: the tensor of the model's last layer that it starts from.
_OF_LAYER: Final = {
    "q_proj": "self_attn.q_proj.weight",
    "k_proj": "self_attn.k_proj.weight",
    "v_proj": "self_attn.v_proj.weight",
    "o_proj": "self_attn.o_proj.weight",
    "gate_proj": "mlp.gate_proj.weight",
    "up_proj": "mlp.up_proj.weight",
    "down_proj": "mlp.down_proj.weight",
    "input_layernorm": "input_layernorm.weight",
    "post_attention_layernorm": "post_attention_layernorm.weight",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudHeadOptions:
    """What to train. Sizes in tokens.

    prompts: the user's own questions; where there are any, half of the corpus answers them.
    """

    num_tokens: int = 65536
    vocabulary: int = 8192
    prompts: tuple[str, ...] = ()
    training: CloudTrainOptions = field(default_factory=CloudTrainOptions)


def build_cloud_head(
    source: ModelSource,
    bundle: Bundle,
    *,
    work: Path,
    options: CloudHeadOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Train a head for `bundle` and write `cloud/draft-head/` and a new manifest into it.

    work: a folder for corpus and checkpoint, from which an interrupted run goes on. Returns the
    contents of `head.json`. Raises BuildError for another model than the bundle's, and for one
    whose layers are not in memory together: each token of the corpus would read all its weights.
    """
    if source.sha256 != bundle.plan.model.sha256:
        raise BuildError(f"the bundle is of model {bundle.plan.model.id}, this is {source.id}")
    passages, embed = _corpus(source, work, options, progress)
    progress("choosing the vocabulary", 0, 1)
    train_on, held_out = _divided(passages)
    said = np.concatenate([one.token_ids for one in train_on])
    embedding = output_embedding(source)
    tokens = frequent_tokens(said, vocab_size=len(embedding), count=options.vocabulary)
    head = _new_head(source, torch.from_numpy(tokens), embedding[tokens].float())
    del embedding
    begin_linear(head, train_on, embed)
    with naming_the_disk(work):
        best, scores = train_cloud_head(
            head,
            train_on,
            held_out,
            embed,
            options.training,
            checkpoint=work / f"checkpoint-{_digest(source, options)}.pt",
            progress=progress,
        )
    progress("writing the head", 0, 1)
    facts = {
        "vocabulary": head.sizes.vocab_size,
        "trained_tokens": len(said),
        "held_out": "kinds" if held_out[0].is_held_out else "passages",
        "held_out_positions": best.num_positions,
        "by_depth": best.by_depth,
        "tokens_a_round": best.tokens_a_round,
        "tokens_a_round_by_epoch": [score.tokens_a_round for score in scores],
        "sizes": asdict(head.sizes),
    }
    _write(head.cpu(), source, bundle, facts)
    return facts


def _corpus(
    source: ModelSource, work: Path, options: CloudHeadOptions, progress: Progress
) -> tuple[list[PassageRef], Embed]:
    """The passages to learn from, and the embedding of their tokens. The model is freed then."""
    tokenizer = source.load_tokenizer()
    with naming_the_disk(work), working_folder(work / "rows") as scratch:
        model = LayeredModel(source, folder=scratch, device=options.training.device)
        if not model.keeps:
            raise BuildError(f"{source.id}: too large to write a corpus with on this machine")
        with model.in_bfloat16():  # exact enough for the corpus
            passages = make_passages(
                work / f"passages-{_corpus_digest(source, options)}",
                model=model.whole(),
                tokenizer=tokenizer,
                width=model.hidden_size,
                context_length=source.geometry.context_length,
                num_tokens=options.num_tokens,
                own=options.prompts,
                progress=progress,
            )
        return passages, _embed(model, passages)


def _divided(passages: list[PassageRef]) -> tuple[list[PassageRef], list[PassageRef]]:
    """Passages to train on and to score: whole kinds are held out; of few, every so many."""
    held_out = [one for one in passages if one.is_held_out]
    rest = [one for one in passages if not one.is_held_out]
    if not held_out:
        held_out = rest[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or rest[-1:]
        chosen = {id(one) for one in held_out}
        rest = [one for one in rest if id(one) not in chosen]
    if not rest:
        raise BuildError("the corpus is too small to hold anything out: ask for more tokens")
    return rest, held_out


def _new_head(source: ModelSource, tokens: Tensor, embedding: Tensor) -> CloudHead:
    """A head with the model's last layer, as far as it has the same parts."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = source.config
    heads = int(config.num_attention_heads)
    width = int(config.hidden_size)
    sizes = HeadSizes(
        hidden_size=width,
        inner=int(config.intermediate_size),
        num_heads=heads,
        num_kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or width // heads),
        vocab_size=len(tokens),
    )
    rotary = LlamaRotaryEmbedding(LlamaConfig(**_rotary_settings(config, sizes)))
    torch.manual_seed(0)
    head = CloudHead(sizes, tokens=tokens, embedding=embedding, rotary=rotary)
    last = f"model.layers.{int(config.num_hidden_layers) - 1}."
    with torch.no_grad():
        for name, tensor in _OF_LAYER.items():
            parameter: Any = getattr(head, name).weight
            if last + tensor in source.tensor_names:
                found = source.read(last + tensor).float()
                if found.shape == parameter.shape:
                    parameter.copy_(found)
    return head


def _rotary_settings(config: Any, sizes: HeadSizes) -> dict[str, Any]:
    """The rotary settings of a head, as the published files have them."""
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0
    return {
        "hidden_size": sizes.hidden_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "rope_theta": float(theta),
        "max_position_embeddings": int(config.max_position_embeddings),
    }


def _embed(model: LayeredModel, passages: list[PassageRef]) -> Embed:
    """What enters layer 0 for the tokens of the corpus: the server's head reads the same rows."""
    said = np.unique(np.concatenate([np.zeros(1, np.int64), *(one.token_ids for one in passages)]))
    known = torch.from_numpy(said)
    table = _entering(model, known)

    def embed(token_ids: Tensor) -> Tensor:
        return table[torch.searchsorted(known, token_ids.cpu())]

    return embed


def _entering(model: LayeredModel, token_ids: Tensor) -> Tensor:
    """Rows float32 [N, D] of ids int64 [N] in rising order, a family's factor included."""
    return model.embedder(token_ids[None])(token_ids[None])[0]


def _write(head: CloudHead, source: ModelSource, bundle: Bundle, facts: dict[str, Any]) -> None:
    """Put the head's files into the bundle, whole or not at all."""
    state = head.state_dict()
    tensors = {"fc.weight": state["fc.weight"], "lm_head.weight": head.embedding}
    tensors |= {f"layers.0.{tensor}": state[f"{name}.weight"] for name, tensor in _OF_LAYER.items()}
    tensors["d2t"] = head.tokens - torch.arange(len(head.tokens))
    num_tokens = int(source.read(EMBEDDING_NAME).shape[0])
    if bundle.plan.back_start > 0:  # else the back holds it
        model = LayeredModel(source, folder=None)
        tensors["embed_tokens.weight"] = _entering(model, torch.arange(num_tokens)).half()
    config = {
        "architectures": ["LlamaForCausalLMEagle"],
        "model_type": "llama",
        "intermediate_size": head.sizes.inner,
        "rms_norm_eps": EPSILON,
        "vocab_size": num_tokens,
        "draft_vocab_size": head.sizes.vocab_size,
        **_rotary_settings(source.config, head.sizes),
    }
    with naming_the_disk(bundle.root), working_folder(bundle.root) as working:
        stored = {name: one.contiguous() for name, one in tensors.items()}
        save_file(stored, working / FILES[0])
        (working / FILES[1]).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (working / FILES[2]).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        folder = bundle.root / DRAFT_HEAD_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            os.replace(working / name, folder / name)
        record_files(bundle.root, tuple(f"{DRAFT_HEAD_FOLDER}/{name}" for name in FILES))


def _corpus_digest(source: ModelSource, options: CloudHeadOptions) -> str:
    """Of everything that a shard depends on; a longer corpus goes on from a shorter one."""
    lengths = (WINDOW, LONG_ANSWER, LONGEST_QUESTION, LENGTH_STEP)
    rows = (ROWS_PER_SHARD, HELD_OUT_ROWS)
    values = [source.sha256, TRAINED, HELD_OUT, TOPICS, options.prompts, lengths, rows]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _digest(source: ModelSource, options: CloudHeadOptions) -> str:
    """Of everything that a checkpoint depends on; more epochs go on from fewer."""
    values = asdict(options) | {"corpus": _corpus_digest(source, options)}
    del values["prompts"]
    for name in ("epochs", "device"):
        del values["training"][name]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
