"""Convert llama2.c's stories260K model to a Hugging Face folder that Splitpoint builds from.

    python examples/convert_stories260k.py FOLDER_WITH_BIN_FILES OUT

Reads `stories260K.bin` (llama2.c's version-0 layout) and `tok512.bin`; writes config.json,
model.safetensors and the tokenizer. The model has 260 thousand weights, never quantized. It is
small enough to look at every number, and a start for converters of other formats.

ONNX Runtime's attention needs heads of a multiple of 16 channels; these have 8. Each head is
widened to 16 with zeros. They take part in no product, so the model stays the same function.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast

WEIGHTS_NAME = "stories260K.bin"
TOKENS_NAME = "tok512.bin"
SPECIAL_TOKENS = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2; llama2.c stores them with line breaks
NUM_BYTE_TOKENS = 256  # ids 3 to 258
HEAD_DIM = 16  # after widening
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space

Array = npt.NDArray[np.float32]


class Header(NamedTuple):
    """The seven little-endian int32 that version 0 begins with."""

    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    context_length: int


def convert(source: Path, out: Path) -> None:
    """Write the model in `source` to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = (source / WEIGHTS_NAME).read_bytes()
    header = Header(*struct.unpack_from("<7i", content))
    save_file(
        {
            name: torch.from_numpy(value.copy())
            for name, value in named_weights(header, content[28:])
        },
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_kv_heads,
        head_dim=HEAD_DIM,
        vocab_size=abs(header.vocab_size),
        max_position_embeddings=header.context_length,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(scored_tokens((source / TOKENS_NAME).read_bytes())),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
    ).save_pretrained(out)


def named_weights(header: Header, content: bytes) -> Iterator[tuple[str, Array]]:
    """Hugging Face names and arrays, in the file's order: each kind for all layers at once."""
    values = np.frombuffer(content, dtype="<f4")
    dim, head_dim = header.dim, header.dim // header.num_heads
    kv_dim = header.num_kv_heads * head_dim
    position = 0

    def take(*shape: int) -> Array:
        nonlocal position
        start, position = position, position + int(np.prod(shape))
        taken: Array = values[start:position].reshape(shape)
        return taken

    def layers(name: str, *shape: int) -> Iterator[tuple[str, Array]]:
        for index, weight in enumerate(take(header.num_layers, *shape)):
            yield f"model.layers.{index}.{name}.weight", CHANGES.get(name, same)(weight, head_dim)

    yield "model.embed_tokens.weight", take(header.vocab_size, dim)
    yield from layers("input_layernorm", dim)
    yield from layers("self_attn.q_proj", dim, dim)
    yield from layers("self_attn.k_proj", kv_dim, dim)
    yield from layers("self_attn.v_proj", kv_dim, dim)
    yield from layers("self_attn.o_proj", dim, dim)
    yield from layers("post_attention_layernorm", dim)
    yield from layers("mlp.gate_proj", header.hidden_dim, dim)
    yield from layers("mlp.down_proj", dim, header.hidden_dim)
    yield from layers("mlp.up_proj", header.hidden_dim, dim)
    yield "model.norm.weight", take(dim)


def same(weight: Array, head_dim: int) -> Array:
    return weight


def halves_from_pairs(weight: Array, head_dim: int) -> Array:
    """Reorder and widen each head's rows: [heads * head_dim, D] -> [heads * HEAD_DIM, D].

    llama2.c rotates rows (0, 1), (2, 3) ... of a head, pair i by theta^(-2i / head_dim);
    transformers rotates rows (j, j + HEAD_DIM / 2) by theta^(-2j / HEAD_DIM). So pair i goes to
    j = i * HEAD_DIM / head_dim, where the angle is the same, and the other rows are zero.
    """
    heads = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])  # [heads, pairs, 2, D]
    widened = np.zeros((len(heads), 2, HEAD_DIM // 2, weight.shape[1]), dtype=np.float32)
    widened[:, :, :: HEAD_DIM // head_dim] = heads.swapaxes(1, 2)
    return widened.reshape(-1, weight.shape[1])


def scaled_halves(weight: Array, head_dim: int) -> Array:
    """Queries too: the products are divided by the root of HEAD_DIM now, not of head_dim."""
    return halves_from_pairs(weight, head_dim) * np.float32(np.sqrt(HEAD_DIM / head_dim))


def widened_rows(weight: Array, head_dim: int) -> Array:
    """Values: zero rows after each head's own. [heads * head_dim, D] -> [heads * HEAD_DIM, D]."""
    heads = weight.reshape(-1, head_dim, weight.shape[1])
    padding = ((0, 0), (0, HEAD_DIM - head_dim), (0, 0))
    return np.pad(heads, padding).reshape(-1, weight.shape[1])


def widened_columns(weight: Array, head_dim: int) -> Array:
    """The output projection reads the widened heads. [D, heads * head_dim] -> ... * HEAD_DIM]."""
    return widened_rows(weight.T, head_dim).T


CHANGES = {
    "self_attn.q_proj": scaled_halves,
    "self_attn.k_proj": halves_from_pairs,
    "self_attn.v_proj": widened_rows,
    "self_attn.o_proj": widened_columns,
}


def scored_tokens(content: bytes) -> list[tuple[str, float]]:
    """Text and score of every token of a tok*.bin file."""
    tokens = []
    position = 4  # after the longest token's length
    while position < len(content):
        score, length = struct.unpack_from("<fi", content, position)
        position += 8
        tokens.append((content[position : position + length].decode(), score))
        position += length
    return tokens


def tokenizer(tokens: list[tuple[str, float]]) -> Tokenizer:
    """The same tokenizer in the `tokenizers` library.

    llama2.c joins, again and again, the neighbours whose joined token has the best score. That
    is BPE with one merge for each way to cut a token in two, in the order of the scores.
    """
    names = SPECIAL_TOKENS + [text.replace(" ", SPACE) for text, _ in tokens[len(SPECIAL_TOKENS) :]]
    vocabulary = {name: index for index, name in enumerate(names)}
    first_merged = len(SPECIAL_TOKENS) + NUM_BYTE_TOKENS
    by_score = sorted(range(first_merged, len(names)), key=lambda index: -tokens[index][1])
    merges = [
        (names[index][:cut], names[index][cut:])
        for index in by_score
        for cut in range(1, len(names[index]))
        if names[index][:cut] in vocabulary and names[index][cut:] in vocabulary
    ]
    made = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    made.add_special_tokens(SPECIAL_TOKENS)
    return made


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} FOLDER_WITH_BIN_FILES OUT")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
