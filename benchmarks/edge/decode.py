"""One decode step, part by part, on loopback, beside transformers' own generate.

    python benchmarks/edge/decode.py [--split 10] [--front-bits 4] [--back-bits 8] [--tokens 64]
    python benchmarks/edge/decode.py --bundle BUNDLE    # one that is built already, at its default
    level

Serves a bundle in a process of its own, decodes through it and through the whole model in
turn, and prints where each millisecond goes, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge.client import EdgeClient
from edge.device.tokenizer import ChatMessage
from edge.generation.completion import CompletionRequest
from edge.generation.report import breakdown
from optimizer.artifacts.plan import load_plan
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import open_source
from splitpoint.commands.build import PartitionFlags, plan_from_flags
from splitpoint.server_process import serving

PROMPT = (
    "Explain in a few sentences how a heat pump warms a house in winter, and why it saves energy."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--split", type=int, default=10)
    parser.add_argument("--front-bits", type=int, default=4)
    parser.add_argument("--back-bits", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bundle", type=Path, help="take this one instead of building one")
    parser.add_argument("--draft", default="off", help="off, or auto as users have it")
    arguments = parser.parse_args()

    source = open_source(arguments.model)
    plan = plan_from_flags(
        source,
        PartitionFlags(
            split=arguments.split,
            front_bits=arguments.front_bits,
            back_bits=arguments.back_bits,
            kv_bits=8,
            max_tokens=512,
        ),
        "lossless",
    )
    whole = source.load_model().eval()
    chat: list[ChatMessage] = [{"role": "user", "content": PROMPT}]
    ids = source.load_tokenizer().apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    rates: dict[str, list[float]] = {"split": [], "transformers": []}
    parts: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle
        if bundle is None:
            out = Path(folder) / "b"
            bundle = build_bundle(source, plan, out, progress=lambda stage: None).bundle
        plan = load_plan(bundle / "plan.yaml")
        with serving(bundle) as address, EdgeClient(bundle, address) as client:
            request = CompletionRequest(max_new_tokens=arguments.tokens, draft=arguments.draft)
            client.complete(chat, request)  # warm-up, both sides
            whole_rate(whole, ids, 8)
            for _ in range(arguments.repeats):
                completion = client.complete(chat, request)
                rates["split"].append(completion.tokens_per_s)
                parts.append(breakdown(completion.steps, "decode"))
                rates["transformers"].append(whole_rate(whole, ids, arguments.tokens))
    step_ms = {name: 1e3 * statistics.median(part[name] for part in parts) for name in parts[0]}
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "plan": {
            "split": plan.partition.split,
            "front_bits": plan.partition.front_bits,
            "back_bits": plan.partition.back_bits,
            "level": plan.level,
        },
        "step_ms": step_ms,
        "tokens_per_s": {name: summary(values) for name, values in rates.items()},
        "ratio_to_transformers": summary(
            [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        ),
    }
    for name, value in step_ms.items():
        print(f"{name:>14} {value:8.3f} ms", file=sys.stderr)
    print(json.dumps(report))
    return 0


def whole_rate(model: Any, ids: torch.Tensor, count: int) -> float:
    """Tokens per second of transformers' greedy generate after the first token."""
    times: list[float] = []

    class Clock:
        def put(self, value: object) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            pass

    with torch.inference_mode():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            streamer=Clock(),
            pad_token_id=0,
        )
    times = times[1:]  # the first call brings the prompt
    return (len(times) - 1) / (times[-1] - times[0])


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how fast it copies memory right now."""
    block = np.ones(1 << 25, dtype=np.float32)
    target = np.empty_like(block)
    spans = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, block)
        spans.append(time.perf_counter() - started)
    return {
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "load_average": os.getloadavg()[0],
        "copy_bytes_per_s": 2 * block.nbytes / min(spans),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "onnxruntime": version("onnxruntime"),
    }


if __name__ == "__main__":
    sys.exit(main())
