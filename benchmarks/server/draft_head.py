"""How long a draft head of the cloud takes for a guess: a random EAGLE head of a model's sizes.

    python benchmarks/server/draft_head.py CONFIG [--vocabulary 8192] [--threads 2] [--repeats 60]

CONFIG: a model's `config.json`; the head gets its width, heads and inner channels. One session with
200 tokens of history; every round reads one new token and then guesses up to eight. Prints one JSON
object: the median and the least milliseconds a guess, the reading included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cloud.drafting.eagle_head import EagleHead
from cloud.drafting.head_drafter import CloudHeadDrafter
from cloud.drafting.head_session import HeadSession
from cloud.drafting.head_spec import HeadWeights, read_head
from cloud.drafting.session_drafts import RanRows
from cloud.kv.pool import KvPool, KvShape

HISTORY = 200
MOST = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("config", type=Path)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = json.loads(arguments.config.read_text())
    with tempfile.TemporaryDirectory() as folder:
        write_random_head(Path(folder), config, arguments.vocabulary)
        drafter, width = opened(Path(folder), config)
    session = drafter.open(split=0, max_tokens=HISTORY + arguments.repeats + 1, most=MOST)
    if session is None:
        raise SystemExit("no room for the head's keys and values")
    round_s(drafter, session, 0, HISTORY, width)
    spans, guesses = [], 0
    for at in range(HISTORY, HISTORY + arguments.repeats):
        seconds, count = round_s(drafter, session, at, 1, width)
        spans.append(1e3 * seconds / count)
        guesses += count
    report = {
        "command": " ".join(["python", *sys.argv]),
        "load": os.getloadavg()[0],
        "median_ms": statistics.median(spans),
        "least_ms": min(spans),
        "guesses_a_round": guesses / arguments.repeats,
    }
    print(json.dumps(report))
    return 0


def write_random_head(folder: Path, config: dict[str, Any], vocabulary: int) -> None:
    """An EAGLE head of the model's sizes, sure enough of its guesses to go on."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or width // heads
    keys = config.get("num_key_value_heads", heads) * size
    generator = torch.Generator().manual_seed(0)

    def matrix(out: int, into: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(out, into, generator=generator) * into**-0.5

    layer = {
        "self_attn.q_proj.weight": matrix(heads * size, width),
        "self_attn.k_proj.weight": matrix(keys, width),
        "self_attn.v_proj.weight": matrix(keys, width),
        "self_attn.o_proj.weight": matrix(width, heads * size),
        "mlp.gate_proj.weight": matrix(inner, width),
        "mlp.up_proj.weight": matrix(inner, width),
        "mlp.down_proj.weight": matrix(width, inner),
        "input_layernorm.weight": torch.ones(width),
        "post_attention_layernorm.weight": torch.ones(width),
    }
    tensors = {
        "fc.weight": matrix(width, 2 * width),
        "norm.weight": torch.ones(width),
        "embed_tokens.weight": matrix(config["vocab_size"], width),
        "lm_head.weight": matrix(vocabulary, width, 6.0),
        "d2t": torch.zeros(vocabulary, dtype=torch.int64),
        **{f"layers.0.{name}": tensor for name, tensor in layer.items()},
    }
    save_file(tensors, folder / "model.safetensors")
    values = {**config, "head_dim": size, "draft_vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(values))


def opened(folder: Path, config: dict[str, Any]) -> tuple[CloudHeadDrafter, int]:
    """A drafter over the head in `folder`, and the model's width."""
    width = int(config["hidden_size"])
    weights = read_head(
        folder,
        hidden_size=width,
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
    )
    if not isinstance(weights, HeadWeights):
        raise SystemExit(f"{folder}: not an EAGLE or EAGLE-3 head")
    spec = weights.spec
    shape = KvShape(num_layers=1, num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim)
    pool = KvPool(shape, limit_bytes=shape.num_bytes(split=0, max_tokens=4096))
    head = EagleHead(weights, embed=None, logits=lambda own: own)
    return CloudHeadDrafter(head, pool, norm=torch.nn.RMSNorm(width)), width


def round_s(
    drafter: CloudHeadDrafter, session: HeadSession, at: int, count: int, width: int
) -> tuple[float, int]:
    """Seconds of one round behind `count` new tokens, and how many guesses it brought."""
    session.begin(at)
    session.tap(torch.randn(count, width))
    session.ran(RanRows(at, tuple(range(count)), 6))
    started_s = time.perf_counter()
    (drafts,) = drafter.draft([session], step_s=1.0)
    seconds = time.perf_counter() - started_s
    return seconds, 1 if drafts is None else len(drafts.choices)


if __name__ == "__main__":
    raise SystemExit(main())
