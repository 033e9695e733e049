"""The worked tables of the planning results: Llama 2 on two small boards.

    python benchmarks/planning/plan_table.py [--write docs/results/planning-and-predictions.md]

Planned from shipped data-sheet profiles: predictions, nothing is measured. With `--write` the
tables replace what stands between the markers of that page. Prints JSON last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prediction import Limits, ProfilesUsed
from optimizer.artifacts.specs import load_spec
from optimizer.cost.front_kernels import blocks_for
from optimizer.cost.link import link_at
from optimizer.cost.memory import edge_memory
from optimizer.search.explain import binding_limits
from optimizer.search.planner import Planner
from optimizer.search.request import make_problem
from optimizer.search.to_plan import plan_of
from splitpoint.views.sizes import size_text, time_text

MODELS = ("llama-2-7b", "llama-2-13b")
EDGES = ("jetson-orin-nano-8gb", "raspberry-pi-5-8gb")
CLOUDS = ("a100-80gb", "h100-80gb")
LINKS = ("lan", "wifi", "5g", "4g")
MAX_TOKENS, PROMPT, ANSWER = 2048, 512, 128
MAX_TBT_S, MAX_TTFT_S, MAX_QUALITY_DROP_PCT = 0.3, 10.0, 10.0
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="page with the markers")
    arguments = parser.parse_args()
    plans = list(planned_rows())
    memory = list(memory_rows())
    text = "\n".join([*plan_lines(plans), "", *memory_lines(memory)])
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)
    print(json.dumps({"benchmark": "plan_table", "plans": plans, "memory": memory}))


def planned_rows() -> Iterator[dict[str, Any]]:
    """One row a model, board, server and link."""
    limits = Limits(
        max_tbt_s=MAX_TBT_S,
        max_ttft_s=MAX_TTFT_S,
        max_quality_drop_pct=MAX_QUALITY_DROP_PCT,
        prompt_tokens=PROMPT,
    )
    for model in MODELS:
        spec = load_spec(model)
        reference = ModelRef(id=spec.hub_id, sha256="", geometry=spec.geometry)
        for edge in EDGES:
            for cloud in CLOUDS:
                planner = Planner(
                    make_problem(
                        spec.geometry,
                        load_device(edge),
                        load_device(cloud),
                        limits=limits,
                        objective="cloud-cost",
                        max_tokens=MAX_TOKENS,
                        answer_tokens=ANSWER,
                    )
                )
                for link in LINKS:
                    yield planned(planner, reference, edge, cloud, link)


def planned(
    planner: Planner, reference: ModelRef, edge: str, cloud: str, link: str
) -> dict[str, Any]:
    """The plan over one link, as a row."""
    row: dict[str, Any] = {"model": reference.id, "edge": edge, "cloud": cloud, "link": link}
    point = link_at(load_link(link), epsilon=0.5)
    found = planner.solve(point)
    if found is None:
        return row | {"split": None}
    plan = plan_of(
        found.grid,
        found.cell,
        model=reference,
        profiles=ProfilesUsed(edge=edge, cloud=cloud, link=link),
    )
    promise = plan.predicted
    if promise is None:
        raise ValueError("a searched plan has predictions")
    return row | {
        "split": plan.partition.split,
        "layers": reference.geometry.num_layers,
        "front_bits": plan.partition.front_bits,
        "back_bits": plan.partition.back_bits,
        "kv_bits": plan.kv_bits,
        "level": plan.level,
        "longest_tokens": promise.longest_tokens,
        "ttft_s": promise.ttft_s,
        "tbt_s": promise.tbt_s,
        "uplink_bytes_per_token": promise.uplink_bytes_per_token,
        "cloud_cost_ratio": promise.cloud_cost_ratio,
        "edge_memory_bytes": promise.edge_memory_bytes,
        "quality_drop_pct": promise.quality_drop_pct,
        "binding": binding_limits(planner, point, found),
    }


def plan_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The plans as Markdown."""
    lines = [
        f"Least cloud compute a token with TBT up to {time_text(MAX_TBT_S)}, TTFT (prompt of "
        f"{PROMPT} tokens) up to {time_text(MAX_TTFT_S)}, {MAX_TOKENS:,} tokens at least, and "
        f"at most {MAX_QUALITY_DROP_PCT:g} % of perplexity (assumed):",
        "",
        "| model | edge | cloud | link | split | bits front / back / KV | level | "
        "tokens possible | TTFT | TBT | bytes a token | cloud-only / split | edge memory | "
        "binding |",
        "| --- | --- | --- | --- | ---: | --- | --- " + "| ---: " * 6 + "| --- |",
    ]
    for row in rows:
        machines = f"{_short(row['edge'])} | {_short(row['cloud'])}"
        start = f"| {_model(row['model'])} | {machines} | {row['link']} | "
        if row["split"] is None:
            lines.append(f"{start}no plan | | | | | | | | | |")
            continue
        ratio = row["cloud_cost_ratio"]
        lines.append(
            f"{start}{row['split']} of {row['layers']} | "
            f"{row['front_bits']} / {row['back_bits']} / {row['kv_bits']} | {row['level']} | "
            f"{row['longest_tokens']:,} | {time_text(row['ttft_s'])} | {time_text(row['tbt_s'])} | "
            f"{row['uplink_bytes_per_token']:,.0f} | "
            f"{'no cloud' if ratio is None else f'{ratio:.2f}x'} | "
            f"{size_text(row['edge_memory_bytes'])} | {', '.join(row['binding'])} |"
        )
    return lines


def memory_rows() -> Iterator[dict[str, Any]]:
    """What everything on the device would take, by uniform precision."""
    for model in MODELS:
        geometry = load_spec(model).geometry
        for edge in EDGES:
            device = load_device(edge)
            usable = device.memory.usable_bytes.value
            for bits in (16, 8, 4):
                kv_bits = 16 if bits == 16 else 8
                needed = whole_bytes(device, model, bits, kv_bits, MAX_TOKENS)
                layers = max(
                    (
                        split
                        for split in range(geometry.num_layers + 1)
                        if split_bytes(device, model, split, bits, kv_bits, MAX_TOKENS) <= usable
                    ),
                    default=None,
                )
                yield {
                    "model": model,
                    "edge": edge,
                    "bits": bits,
                    "kv_bits": kv_bits,
                    "needed_bytes": needed,
                    "usable_bytes": usable,
                    "most_layers": layers,
                    "layers": geometry.num_layers,
                    "longest_tokens": longest_whole(device, model, bits, kv_bits),
                }


def memory_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Where one precision for everything, and everything on the device, run out of memory."""
    lines = [
        f"Everything on the device at one precision, {MAX_TOKENS:,} tokens (4- and 8-bit weights "
        "in large blocks, KV at 8 or 16 bits):",
        "",
        "| model | edge | weight bits | needed | usable | whole model | longest sequence with "
        "the whole model | most layers that fit |",
        "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in rows:
        fits = row["needed_bytes"] <= row["usable_bytes"]
        longest = row["longest_tokens"]
        lines.append(
            f"| {_model(row['model'])} | {_short(row['edge'])} | {row['bits']} | "
            f"{size_text(row['needed_bytes'])} | {size_text(row['usable_bytes'])} | "
            f"{'fits' if fits else 'out of memory'} | {f'{longest:,}' if longest else 'none'} | "
            f"{row['most_layers']} of {row['layers']} |"
        )
    return lines


def whole_bytes(device: DeviceProfile, model: str, bits: int, kv_bits: int, tokens: int) -> float:
    """Peak memory with every layer and the head on the device."""
    layers = load_spec(model).geometry.num_layers
    return split_bytes(device, model, layers, bits, kv_bits, tokens)


def split_bytes(
    device: DeviceProfile, model: str, split: int, bits: int, kv_bits: int, tokens: int
) -> float:
    """Peak memory with `split` layers on the device."""
    plan = Plan(
        model=ModelRef(id=model, sha256="", geometry=load_spec(model).geometry),
        partition=Partition(split=split, front_bits=bits, back_bits=16),
        back_start=split,
        kv_bits=kv_bits,
        level="lossless",
        max_tokens=tokens,
        prefill_chunk=128,
        weight_blocks=blocks_for(bits, "large"),
    )
    return edge_memory(device, plan).total_bytes


def longest_whole(device: DeviceProfile, model: str, bits: int, kv_bits: int) -> int:
    """The longest sequence with the whole model on the device, by bisection; 0: not even one."""
    usable = device.memory.usable_bytes.value
    low, high = 0, load_spec(model).geometry.context_length
    while low < high:
        middle = (low + high + 1) // 2
        if whole_bytes(device, model, bits, kv_bits, middle) <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def _model(name: str) -> str:
    return "Llama 2 13B" if "13b" in name else "Llama 2 7B"


def _short(name: str) -> str:
    return {
        "jetson-orin-nano-8gb": "Orin Nano",
        "raspberry-pi-5-8gb": "Pi 5",
        "a100-80gb": "A100",
        "h100-80gb": "H100",
    }[name]


if __name__ == "__main__":
    main()
