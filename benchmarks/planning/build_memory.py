"""Peak memory and time of a build, for a seeded random model of a given shape.

    python benchmarks/planning/build_memory.py --shape 1b --split 8 --work WORK

The model is written shard by shard, so this needs no more memory than a build does. The build runs
in a process of its own. JSON last: peak bytes, what was predicted
(`optimizer/cost/build_memory.py`) with its error, the bound (two layers in float32, the embedding
and head as stored, 1.5 GiB), seconds by stage.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from optimizer.cost.build_memory import build_memory

# Llama's: hidden size, MLP width, layers, heads, KV heads, vocabulary, tied.
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "tiny": (256, 512, 6, 4, 2, 49_152, True),
    "0.5b": (896, 4864, 24, 14, 2, 49_152, True),
    "1.5b": (1536, 8960, 28, 12, 2, 49_152, True),
    "1b": (2048, 8192, 16, 32, 8, 128_256, True),
    "3b": (3072, 8192, 28, 24, 8, 128_256, True),
    "8b": (4096, 14_336, 32, 32, 8, 128_256, False),
}
BUILD = """
import json, sys, time
from pathlib import Path
from cloud.engine.served_back import ServedBack
from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.export.bundle_builder import Calibration, build_bundle
from optimizer.export.sources.model_source import open_source
from splitpoint.commands.build import SIDES, PartitionFlags, plan_from_flags

model, out, split, front, back, weights, side = sys.argv[1:]
seconds, peaks, last = {}, {}, ["start", time.perf_counter()]
def note(stage):
    stage = stage.split(" (")[0]
    now = time.perf_counter()
    seconds[last[0]] = seconds.get(last[0], 0.0) + now - last[1]
    peak = peak_memory_bytes()
    peaks[last[0]] = max(peaks.get(last[0], 0), peak)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    if stage != last[0]:
        print(f"{last[0]}: {seconds[last[0]]:.0f} s, {peak >> 20} MiB", file=sys.stderr, flush=True)
    last[:] = [stage, now]
source = open_source(Path(model))
flags = PartitionFlags(split=int(split), front_bits=int(front), back_bits=int(back))
build_bundle(source, plan_from_flags(source, flags, "q2"), Path(out), progress=note, force=True,
             calibration=Calibration(), weights=weights, sides=SIDES[side], open_back=ServedBack)
note("end")
print(json.dumps({"peak_bytes": max(peaks.values()), "seconds": seconds, "peak_by_stage": peaks}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1b")
    parser.add_argument("--split", type=int, default=8)
    parser.add_argument("--front-bits", type=int, default=4)
    parser.add_argument("--back-bits", type=int, default=8)
    parser.add_argument("--weights", choices=("reference", "copy", "auto"), default="reference")
    parser.add_argument("--side", choices=("both", "edge", "cloud"), default="both")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        required=True,
        help="A model folder or GGUF whose tokenizer to use.",
    )
    parser.add_argument("--keep", action="store_true", help="Leave model and bundle behind.")
    options = parser.parse_args()
    model = options.work / f"model-{options.shape}"
    if not (model / "config.json").is_file():
        write_model(model, options.shape, options.tokenizer)
    bundle = options.work / "bundle"
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-c", BUILD, str(model), str(bundle), str(options.split),
            str(options.front_bits), str(options.back_bits), options.weights, options.side,
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - started
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    bound, predicted = bound_bytes(options.shape), predicted_bytes(options.shape)
    line = {"shape": options.shape, "bound_bytes": bound, "predicted_bytes": predicted}
    if found:
        line["error"] = predicted / found["peak_bytes"] - 1
    print(json.dumps({**line, "wall_s": wall_s, **found}))
    if not options.keep:
        shutil.rmtree(model)
        shutil.rmtree(bundle, ignore_errors=True)
    sys.exit(done.returncode)


def bound_bytes(shape: str) -> int:
    """Two layers in float32, embedding and head in bfloat16, and 1.5 GiB."""
    hidden, _, _, _, _, vocab, tied = SHAPES[shape]
    return 2 * 4 * layer_parameters(shape) + (1 if tied else 2) * 2 * vocab * hidden + (3 << 29)


def predicted_bytes(shape: str) -> float:
    """What `splitpoint model inspect` predicts for this model in bfloat16."""
    hidden, _, layers, _, _, vocab, tied = SHAPES[shape]
    stored = 2 * vocab * hidden
    return build_memory(
        [layer_parameters(shape)] * layers,
        embedding_bytes=stored,
        head_bytes=0 if tied else stored,
        hidden_size=hidden,
        vocab_size=vocab,
    ).total_bytes


def layer_parameters(shape: str) -> int:
    """Weights of one layer's matrices."""
    hidden, inner, _, heads, kv_heads, _, _ = SHAPES[shape]
    return hidden * (hidden // heads) * (2 * heads + 2 * kv_heads) + 3 * hidden * inner


def write_model(folder: Path, shape: str, tokenizer: Path) -> None:
    """A random Llama in bfloat16, one shard a layer."""
    from transformers import LlamaConfig

    from optimizer.export.sources.model_source import open_source

    hidden, inner, layers, heads, kv_heads, vocab, tied = SHAPES[shape]
    folder.mkdir(parents=True)
    open_source(tokenizer).load_tokenizer().save_pretrained(folder)
    head_dim = hidden // heads
    names: dict[str, str] = {}
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        values = torch.empty(rows, columns, dtype=torch.bfloat16)
        return values.normal_(0.0, columns**-0.5, generator=generator)

    def save(number: int, tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{number:05}-of-{layers + 2:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        names.update(dict.fromkeys(tensors, file))

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    save(1, {"model.embed_tokens.weight": matrix(vocab, hidden)})
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        sizes = {
            "self_attn.q_proj": (heads * head_dim, hidden),
            "self_attn.k_proj": (kv_heads * head_dim, hidden),
            "self_attn.v_proj": (kv_heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, heads * head_dim),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        tensors = {f"{prefix}.{name}.weight": matrix(*size) for name, size in sizes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = ones.clone()
        save(layer + 2, tensors)
    rest = {"model.norm.weight": ones.clone()}
    if not tied:
        rest["lm_head.weight"] = matrix(vocab, hidden)
    save(layers + 2, rest)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
