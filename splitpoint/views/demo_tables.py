"""What the demo shows of an answer: where the time went, and the same question three ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from splitpoint.views.sizes import size_text, time_text

if TYPE_CHECKING:
    from edge.generation.report import Completion
    from optimizer.artifacts.plan import Plan


def three_ways(plan: Plan, split: Completion, in_cloud: Completion, whole: Plan) -> Table:
    """The same question three ways; the whole device as planned, since it may not fit there."""
    table = Table(title="The same question three ways", title_justify="left")
    for name in ("layers", "TTFT", "TBT", "server a token", "up, all", "memory on the device"):
        table.add_column(name, justify="left" if name == "layers" else "right")
    memory = "" if plan.predicted is None else size_text(plan.predicted.edge_memory_bytes)
    layers = plan.model.geometry.num_layers
    table.add_row(f"split at {plan.partition.split} of {layers}", *_measured_row(split), memory)
    table.add_row("all in the cloud, token ids up", *_measured_row(in_cloud), "no layers")
    if whole.predicted is not None:
        table.add_row(
            "all on the device (planned)",
            time_text(whole.predicted.ttft_s),
            time_text(whole.predicted.tbt_s),
            time_text(0.0),
            "0 B",
            size_text(whole.predicted.edge_memory_bytes),
        )
    return table


def _measured_row(completion: Completion) -> tuple[str, ...]:
    busy_s = sum(step.cloud_s - step.cloud_queue_s for step in completion.steps)
    return (
        time_text(completion.ttft_s),
        time_text(completion.tbt_quantile_s(0.5)),
        time_text(busy_s / max(len(completion.token_ids), 1)),
        f"{completion.to_json()['uplink_bytes']:,} B",
    )


def time_table(completion: Completion) -> Table:
    """Where each millisecond went: one column for the prompt, one for a decoded token."""
    from edge.generation.report import breakdown

    prefill = breakdown(completion.steps, "prefill")
    decode = breakdown(completion.steps, "decode")
    table = Table(title="Where each millisecond went", title_justify="left")
    table.add_column("part")
    table.add_column("prompt, a chunk [ms]", justify="right")
    table.add_column("decode, a token [ms]", justify="right")
    for name, seconds in decode.items():
        table.add_row(name, f"{1e3 * prefill.get(name, 0.0):.2f}", f"{1e3 * seconds:.2f}")
    table.add_section()
    table.add_row("sum", f"{1e3 * sum(prefill.values()):.2f}", f"{1e3 * sum(decode.values()):.2f}")
    table.add_row(
        "measured",
        f"TTFT {1e3 * completion.ttft_s:.1f}",
        f"TBT {1e3 * completion.tbt_quantile_s(0.5):.2f}",
    )
    figures = completion.to_json()
    table.caption = (
        f"{completion.num_prompt_tokens} prompt tokens, {len(completion.token_ids)} new; "
        f"{completion.tokens_per_s:.1f} tokens/s; up {figures['uplink_bytes']:,} B "
        f"({completion.bits_per_element:.2f} bits an element), "
        f"down {figures['downlink_bytes']:,} B"
    )
    return table
