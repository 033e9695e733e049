"""What a simulation found, as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from optimizer.simulate.measures import Measures
from optimizer.simulate.scenario import Scenario


def print_measures(scenario: Scenario, measures: Measures) -> None:
    """Latencies, where the time goes, and what the servers did."""
    screen = Console()
    asked = measures.requests["asked"]
    screen.print(
        f"{scenario.name}: {measures.clients:,} clients, {measures.servers} server"
        f"{'s' * (measures.servers > 1)}, {measures.duration_s:g} s, "
        f"{asked:,} requests, {measures.tokens:,} tokens "
        f"({measures.events:,} events in {measures.wall_s:.1f} s)"
    )
    table = Table("", "p50", "p95", "p99", "budget", title="Latency (simulated)")
    rows = (
        ("first token", measures.ttft_s, scenario.budget.ttft_s),
        ("between tokens", measures.tbt_s, scenario.budget.tbt_s),
        ("whole answer", measures.e2e_s, None),
    )
    for name, spread, budget in rows:
        values = (spread.p50, spread.p95, spread.p99)
        table.add_row(name, *map(seconds, values), "" if budget is None else seconds(budget))
    screen.print(table)
    parts = Table("", *measures.breakdown_step_s, title="Where the time goes (means)")
    parts.add_row("first token", *map(seconds, measures.breakdown_first_s.values()))
    parts.add_row("step", *map(seconds, measures.breakdown_step_s.values()))
    screen.print(parts)
    outcomes = ", ".join(
        f"{count:,} {name.replace('_', ' ')}"
        for name, count in measures.requests.items()
        if name != "asked"
    )
    screen.print(f"requests          {outcomes or 'none'}")
    screen.print(f"tokens in time    {measures.within_budget:.1%}")
    screen.print(
        f"servers           {measures.server_utilisation:.1%} busy, "
        f"{measures.mean_batch_sessions:.1f} sessions a batch, "
        f"KV {measures.kv_occupancy_mean:.1%} (peak {measures.kv_occupancy_peak:.1%}), "
        f"{measures.tokens_per_s:,.1f} tokens/s"
    )
    screen.print(
        f"bytes             {measures.uplink_bytes_per_token:,.0f} up a token, "
        f"{measures.uplink_bytes:,} up and {measures.downlink_bytes:,} down in all"
    )
    if measures.cost:
        screen.print(
            f"cost              {measures.cost:,.2f} for the servers, "
            f"{measures.cost_per_million_tokens:,.2f} a million tokens"
        )


def seconds(value: float) -> str:
    """A duration for people: `1.23 s`, `45.6 ms`, `7 us`."""
    if value >= 100:
        return f"{value:,.0f} s"
    if value >= 1:
        return f"{value:.2f} s"
    if value >= 1e-3:
        return f"{1e3 * value:.1f} ms"
    return f"{1e6 * value:.0f} us" if value > 5e-7 else "0"
