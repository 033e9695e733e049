"""The cases of `plan_against_measured.py`, the names of their runs, and the table of results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from optimizer.artifacts.plan import Plan
from optimizer.cost.link import LinkPoint
from optimizer.measured.comparison import error_of

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One link and memory limit."""

    up_mbps: float
    down_mbps: float
    rtt_s: float
    memory_mib: int

    @property
    def link(self) -> LinkPoint:
        return LinkPoint(
            up_bytes_per_s=self.up_mbps * 1e6 / 8,
            down_bytes_per_s=self.down_mbps * 1e6 / 8,
            rtt_s=self.rtt_s,
        )

    @property
    def name(self) -> str:
        return f"{self.up_mbps:g}/{self.down_mbps:g} Mbit/s, {1e3 * self.rtt_s:g} ms"


def run_key(case: Case, plan: Plan) -> str:
    """One measurement's name; a whole edge does not care for the link."""
    part = plan.partition
    chosen = f"s{part.split} b{part.front_bits} k{plan.kv_bits} c{plan.prefill_chunk} {plan.level}"
    return chosen if plan.edge_is_whole else f"{case.name}: {chosen}"


def report(studies: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """The table, and one JSON object."""
    rows = []
    for item in studies:
        case, plan = item["case"], item["plans"][0]
        mine = results.get(run_key(case, plan))
        if mine is None:
            continue
        others = {
            run_key(case, other): results[run_key(case, other)]["tbt_s"]
            for other in item["plans"][1:]
            if run_key(case, other) in results
        }
        best = min(others.values(), default=float("inf"))
        part, predicted = plan.partition, plan.predicted
        rows.append(
            {
                "memory_mib": case.memory_mib,
                "link": case.name,
                "split": part.split,
                "front_bits": part.front_bits,
                "kv_bits": plan.kv_bits,
                "level": plan.level,
                "chunk": plan.prefill_chunk,
                "peak_mib": mine["peak_memory_bytes"] / MIB,
                "limit_mib": item["limit"] / MIB,
                "refused": mine["refused"],
                "predicted_mib": predicted.edge_memory_bytes / MIB,
                "tbt_s": mine["tbt_s"],
                "tbt_predicted_s": predicted.tbt_s,
                "ttft_s": mine["ttft_s"],
                "ttft_predicted_s": predicted.ttft_s,
                "best_neighbour_tbt_ratio": best / mine["tbt_s"],
                "neighbours": others,
                "parts_s": mine["parts_s"],
            }
        )
    print("| above base | link | plan | peak / limit (predicted) | TBT (predicted, error) | "
          "TTFT (predicted, error) | best neighbour's TBT |")  # fmt: skip
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        precision = f"{row['front_bits']} bits, KV {row['kv_bits']}, {row['level']}"
        print(
            f"| {row['memory_mib']} MiB | {row['link']} | split {row['split']}, {precision}, "
            f"chunk {row['chunk']} | "
            f"{row['peak_mib']:.0f} / {row['limit_mib']:.0f} ({row['predicted_mib']:.0f}) MiB | "
            f"{_pair(row['tbt_s'], row['tbt_predicted_s'])} | "
            f"{_pair(row['ttft_s'], row['ttft_predicted_s'])} | "
            f"{row['best_neighbour_tbt_ratio']:.2f} |"
        )
    print(json.dumps({"benchmark": "plan_against_measured", "rows": rows}))


def _pair(measured: float, predicted: float) -> str:
    error = 100 * error_of(predicted, measured)
    return f"{1e3 * measured:.1f} ms ({1e3 * predicted:.1f}, {error:+.0f} %)"
