"""How the simulator grows: seconds, events and memory of the meters' scenario by number of clients.

    python benchmarks/simulation/simulate_scale.py [--clients 1000 10000 100000]

Every size runs in a process of its own (its peak memory is its own), with one server for 2,500
clients. Table on stderr, JSON last.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.edge.facts import machine

SCENARIO = Path(__file__).resolve().parents[2] / "examples" / "scenarios" / "meters-lte-m.yaml"
CLIENTS_PER_SERVER = 2_500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    arguments = parser.parse_args()
    facts, rows = machine(), []
    for clients in arguments.clients:
        servers = -(-clients // CLIENTS_PER_SERVER)
        command = [sys.executable, "-m", "splitpoint", "simulate", "--scenario", str(SCENARIO)]
        command += ["--clients", str(clients), "--servers", str(servers), "--json"]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        rows.append(row_of(found))
        print(line(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"command": " ".join(sys.argv), "machine": facts, "rows": rows}))
    return 0


def row_of(found: dict[str, Any]) -> dict[str, float]:
    """What one size took. `us_per_event_log`: CPU microseconds an event and bit of log2(events)."""
    events, cpu_s = found["events"], found["cpu_s"]
    return {
        "clients": found["clients"],
        "servers": found["servers"],
        "simulated_s": found["duration_s"],
        "tokens": found["tokens"],
        "events": events,
        "wall_s": found["wall_s"],
        "cpu_s": cpu_s,
        "us_per_event": 1e6 * cpu_s / events,
        "us_per_event_log": 1e6 * cpu_s / events / math.log2(events),
        "peak_memory_mib": found["peak_memory_bytes"] / 2**20,
    }


def line(row: dict[str, float]) -> str:
    cells = (
        f"{row['clients']:,}",
        f"{row['servers']}",
        f"{row['tokens']:,}",
        f"{row['events']:,}",
        f"{row['cpu_s']:.1f}",
        f"{row['wall_s']:.1f}",
        f"{row['us_per_event']:.1f}",
        f"{row['us_per_event_log']:.2f}",
        f"{row['peak_memory_mib']:.0f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
