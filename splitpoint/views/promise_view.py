"""What a plan promises: a table of its predictions, each with p10, p90 and parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from rich.table import Table

from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prediction import Predicted, PredictedRange
from splitpoint.views.sizes import size_text, time_text

Text = Callable[[float], str]

NOTICED_DROP_PCT: Final = 1.0  # of perplexity
NO_SENSOR: Final = "the profile has no measured watts ('profile device --sustained')"
NO_LOAD: Final = "the profile has no long load ('profile device --sustained')"


def percent_text(percent: float) -> str:
    """A percentage."""
    return f"{percent:.2f} %"


def money_text(amount: float) -> str:
    """Money for a million tokens."""
    return f"{amount:,.2f}" if abs(amount) >= 1 else f"{amount:.3g}"


def joules_text(amount: float) -> str:
    """Energy of a device."""
    return f"{amount:.3g} J" if abs(amount) >= 0.1 else f"{1e3 * amount:.3g} mJ"


def per_second_text(rate: float) -> str:
    """A rate of tokens."""
    return f"{rate:.3g} tokens/s"


def promise_table(plan: Plan, predicted: Predicted) -> Table:
    """What a plan predicts, how surely, and what it is made of."""
    memory, step = predicted.edge_memory, predicted.step
    table = Table(
        "prediction", "", "p10 to p90", "parts", title="What it promises", title_justify="left"
    )
    ranges = range_texts(predicted)
    limits = "within the limits"
    if plan.limits is not None and plan.limits.quantile != 0.5:
        limits += f", each with {plan.limits.quantile:.0%}"
    parts = {
        "runtime": memory.runtime_bytes,
        "weights": memory.weight_bytes,
        "embedding": memory.embedding_bytes,
        "codec": memory.codec_bytes,
        "KV": memory.kv_bytes,
        "workspace": memory.workspace_bytes,
        "draft": memory.draft_bytes,
    }
    said = ", ".join(f"{name} {size_text(value)}" for name, value in parts.items() if value)
    table.add_row("edge memory", size_text(predicted.edge_memory_bytes), ranges["memory"], said)
    seconds = {
        "draft": step.draft_s,
        "front": step.front_s,
        "encode": step.encode_s,
        "wire": step.wire_s,
        "cloud": step.cloud_s,
        "sample": step.sample_s,
    }
    said = ", ".join(f"{name} {time_text(value)}" for name, value in seconds.items() if value)
    if predicted.tokens_per_round > 1:
        said += f"; {predicted.tokens_per_round:.2f} tokens a round"
    table.add_row("TBT", time_text(predicted.tbt_s), ranges["TBT"], said)
    table.add_row(
        "slowest TBT",
        time_text(predicted.longest_tbt_s),
        ranges["slowest TBT"],
        f"up to {plan.max_tokens:,} tokens",
    )
    prompt = plan.limits.prompt_tokens if plan.limits is not None else 0
    said = f"prompt of {prompt:,} tokens"
    if predicted.first_ttft_s is not None and predicted.first_ttft_s > predicted.ttft_s:
        said += f"; {time_text(predicted.first_ttft_s)} where the connection has to be made"
    table.add_row("TTFT", time_text(predicted.ttft_s), ranges["TTFT"], said)
    table.add_row("uplink a token", f"{predicted.uplink_bytes_per_token:.0f} B", "", "")
    ratio = predicted.cloud_cost_ratio
    said = "" if ratio is None else f"the whole model there would take {ratio:.2f} times as much"
    table.add_row("cloud a token", time_text(predicted.cloud_s_per_token), "", said)
    for row in _energy_rows(predicted):
        table.add_row(*row)
    if not plan.edge_is_whole:
        table.add_row(
            "cloud memory",
            size_text(predicted.cloud_memory_bytes),
            "",
            f"{size_text(predicted.cloud_memory_per_session_bytes)} a session",
        )
    table.add_row(
        "quality",
        f"{percent_text(predicted.quality_drop_pct)} of perplexity",
        "",
        _quality_text(predicted.quality_drop_pct, predicted.quality_source),
    )
    table.add_row("longest possible", f"{predicted.longest_tokens:,} tokens", "", limits)
    return table


def range_texts(predicted: Predicted) -> dict[str, str]:
    """p10 to p90 of each prediction that has them; empty texts in older plans."""
    known = predicted.ranges
    if known is None:
        return dict.fromkeys(("memory", "TBT", "slowest TBT", "TTFT"), "")
    return {
        "memory": _range_text(known.edge_memory_bytes, size_text),
        "TBT": _range_text(known.tbt_s, time_text),
        "slowest TBT": _range_text(known.longest_tbt_s, time_text),
        "TTFT": _range_text(known.ttft_s, time_text),
    }


def _range_text(item: PredictedRange, text: Text) -> str:
    return f"{text(item.p10)} to {text(item.p90)}"


def _energy_rows(predicted: Predicted) -> Iterator[tuple[str, str, str, str]]:
    """Energy, the rate that lasts, and cost where there are prices; words in place of a number
    that nobody can know."""
    energy, lasting, cost = predicted.energy, predicted.lasting, predicted.cost
    if energy is None:
        yield "energy a token", "no sensor", "", NO_SENSOR
    else:
        each, whole = energy.joules_per_token, energy.joules_per_answer
        said = (
            f"{energy.sensor}; prompt and {energy.answer_tokens:,} tokens: "
            f"{joules_text(whole.p50)} ({_range_text(whole, joules_text)})"
        )
        yield "energy a token", joules_text(each.p50), _range_text(each, joules_text), said
    if lasting is None:
        yield "rate that lasts", "not measured", "", NO_LOAD
    else:
        rate = lasting.tokens_per_s
        said = f"after {time_text(lasting.after_s)} of work"
        yield "rate that lasts", per_second_text(rate.p50), _range_text(rate, per_second_text), said
    if cost is not None:
        money, answer = cost.per_million_tokens, cost.per_answer
        said = "an answer: no sensor" if answer is None else f"an answer: {money_text(answer.p50)}"
        yield "cost a million tokens", money_text(money.p50), _range_text(money, money_text), said


def _quality_text(drop_pct: float, source: str) -> str:
    """Where the loss is known from; a loss that readers notice must not rest on assumptions."""
    if source == "certified" and drop_pct == 0:
        return "exact: nothing is rounded or compressed"
    if source == "certified" or drop_pct <= NOTICED_DROP_PCT:
        return source
    return f"{source}: measure it with 'splitpoint certify'"
