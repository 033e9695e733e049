"""Tiny seeded random models, one of each family, saved as Hugging Face folders.

Four to six layers and a few dozen channels: every mechanism of the real family (grouped queries,
biases, q/k norms, sliding windows, soft caps, fused projections) at a size that builds in a
second. A new family in `optimizer.families` needs an entry here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from optimizer.families import FAMILIES, ModelFamily

VOCAB = 320
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}

# By the family's name: what its config has beside COMMON.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16, "tie_word_embeddings": True},
    "mistral": {"head_dim": 16, "sliding_window": 12, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 12,
        "num_hidden_layers": 6,
        "layer_types": 2 * (["sliding_attention"] * 2 + ["full_attention"]),
    },
    "phi3": {"tie_word_embeddings": False, "original_max_position_embeddings": 256},
    "ministral": {"head_dim": 16, "sliding_window": 12, "tie_word_embeddings": False},
    "gemma": {"head_dim": 16},
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
        "logits_scaling": 8.0,
        "tie_word_embeddings": True,
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 12, "layer_types": 2 * ["sliding_attention", "full_attention"]},
    "exaone4": {
        "sliding_window": 12,
        "layer_types": 2 * ["sliding_attention", "full_attention"],
        "sliding_window_pattern": "LG",
    },
    "ernie4_5": {"head_dim": 16, "use_bias": True},
    "glm": {"head_dim": 32},
    "glm4": {"head_dim": 32, "attention_bias": True},
    "starcoder2": {"sliding_window": 12},
    "arcee": {"head_dim": 16},
    "seed_oss": {"head_dim": 16, "attention_bias": True, "attention_out_bias": True},
    "phi": {"hidden_size": 128},
    "nemotron": {"head_dim": 32, "hidden_size": 128, "initializer_range": 0.1},
    "olmo": {"clip_qkv": 1.5},
    "granitemoehybrid": {
        "layer_types": 4 * ["full_attention"],
        "shared_intermediate_size": 96,
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
        "logits_scaling": 8.0,
        "mamba_n_heads": 4,
    },
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [2],
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 12,
        "layer_types": 2 * ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}

FAMILY_OF: dict[str, ModelFamily] = {family.name: family for family in FAMILIES}
FRONT_FAMILIES = [family.name for family in FAMILIES if family.on_front]
BACK_FAMILIES = [family.name for family in FAMILIES if family.on_back]


SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def make_tiny_model(name: str, folder: Path, **changes: Any) -> transformers.PreTrainedModel:
    """Save the tiny model `name` with a tokenizer into `folder`; returns it in float32, eval.

    changes: of its config's values.
    """
    config = transformers.AutoConfig.for_model(
        FAMILY_OF[name].model_type, **{**COMMON, **CONFIGS[name], **changes}
    )
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Fresh norms are all ones (or zeros): give them values that a forgotten one would show.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_byte_tokenizer(folder)
    return model.eval()


def save_byte_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes, so that any text works and ids stay below VOCAB."""
    alphabet = sorted(ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    fast.chat_template = (
        "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant: {% endif %}"
    )
    fast.save_pretrained(folder)


def byte_ids(text: str) -> list[int]:
    """The tokens of ASCII text in the tokenizer of single bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = [letter if letter > " " else chr(256 + ord(letter)) for letter in text]
    return [len(SPECIAL) + alphabet.index(letter) for letter in letters]
