"""What keys and values lose when they move at a lossy level: perplexity, and bits an element.

    python -m benchmarks.codec.kv_quality --model FOLDER_OR_GGUF [--from-split 10] [--to-split 5]
        [--context 512] [--scored 512] [--windows 8] [--text FILE]

Each window of the text has `context` tokens whose keys and values of the moved layers go through
the codec, and `scored` tokens behind them. The whole model, in float32, says how likely these are
with the keys and values as they were and as they arrived. JSON last.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from codec.kv.frame import KV_BITS, KvFrames
from optimizer.export.sources.model_source import open_source

TEXT = Path("optimizer/export/calibration/shipped_text.txt")


def through_codec(past: Any, frames: KvFrames, level: str) -> tuple[Any, int, float]:
    """A copy of the cache whose layers have been sent; the bytes, and the seconds they took."""
    moved = copy.deepcopy(past)
    layers = [moved.layers[index] for index in frames.layers]
    pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in layers]
    kv = torch.stack(pairs).permute(3, 0, 1, 2, 4).contiguous().numpy()  # [T, n, 2, G, d]
    began_s = time.perf_counter()
    sent = [
        frames.encode(level, kv[begin : begin + frames.max_tokens])
        for begin in range(0, len(kv), frames.max_tokens)
    ]
    counts = [min(frames.max_tokens, len(kv) - b) for b in range(0, len(kv), frames.max_tokens)]
    arrived = np.concatenate(
        [frames.decode(one, num_tokens=count) for one, count in zip(sent, counts, strict=True)]
    )
    seconds = time.perf_counter() - began_s
    for index, layer in enumerate(layers):
        both = torch.from_numpy(arrived[:, index]).permute(1, 2, 0, 3)  # [2, G, T, d]
        layer.keys, layer.values = both[0][None].contiguous(), both[1][None].contiguous()
    return moved, sum(map(len, sent)), seconds


@torch.inference_mode()
def measure(model: Any, ids: torch.Tensor, frames: KvFrames, context: int) -> dict[str, Any]:
    """Sums over one window, by level; "exact" is the cache as it was."""
    past = model(ids[None, :context], use_cache=True).past_key_values
    found: dict[str, Any] = {}
    exact = None
    for level in ("exact", *KV_BITS):
        cache, num_bytes, seconds = copy.deepcopy(past), 0, 0.0
        if level != "exact":
            cache, num_bytes, seconds = through_codec(past, frames, level)
        logits = model(ids[None, context:], past_key_values=cache, use_cache=True).logits[0]
        logs = torch.log_softmax(logits[:-1].double(), dim=-1)
        wanted = ids[context + 1 :]
        exact = logs if exact is None else exact
        found[level] = {
            "nll": -float(logs[torch.arange(len(wanted)), wanted].sum()),
            "kl": float((exact.exp() * (exact - logs)).sum()),
            "same_top": int((logs.argmax(-1) == exact.argmax(-1)).sum()),
            "bytes": num_bytes,
            "seconds": seconds,
        }
    return found


def report(windows: list[dict[str, Any]], *, scored: int, elements: int) -> dict[str, Any]:
    """Means over all windows, by level."""
    count = len(windows) * (scored - 1)
    exact = float(np.exp(sum(window["exact"]["nll"] for window in windows) / count))
    levels = {}
    for level in KV_BITS:
        sums = {key: sum(window[level][key] for window in windows) for key in windows[0][level]}
        perplexity = float(np.exp(sums["nll"] / count))
        levels[level] = {
            "bits_per_element": 8 * sums["bytes"] / (elements * len(windows)),
            "perplexity": perplexity,
            "perplexity_rise_pct": 100 * (perplexity / exact - 1),
            "kl_nats": sums["kl"] / count,
            "same_top_token_pct": 100 * sums["same_top"] / count,
            "coder_s_per_element": sums["seconds"] / (elements * len(windows)),
        }
    return {"perplexity_exact": exact, "tokens_scored": count, "levels": levels}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--from-split", type=int, default=10)
    parser.add_argument("--to-split", type=int, default=5)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--scored", type=int, default=512)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokenizer", type=Path, help="an edge folder's tokenizer.json")
    arguments = parser.parse_args()
    source = open_source(arguments.model)
    geometry = source.geometry
    frames = KvFrames(
        hidden_size=geometry.hidden_size,
        layers=range(arguments.to_split, arguments.from_split),
        num_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
    )
    if arguments.tokenizer is None:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(arguments.model))
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(arguments.tokenizer))
    text = arguments.text.read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text[: 8000 * arguments.windows])["input_ids"])
    size = arguments.context + arguments.scored
    model = source.load_model().eval()
    windows = []
    for index in range(arguments.windows):
        window = ids[index * size : (index + 1) * size]
        windows.append(measure(model, window, frames, arguments.context))
        print(windows[-1], file=sys.stderr)
    elements = arguments.context * frames.num_elements
    found = report(windows, scored=arguments.scored, elements=elements)
    print(json.dumps({"command": " ".join(["python", *sys.argv]), **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
