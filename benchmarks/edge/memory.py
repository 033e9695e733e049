"""The edge process's high-water mark under a memory limit, over a long generation.

    python benchmarks/edge/memory.py --bundle BUNDLE [--limit 160MiB] [--tokens 2000] [--level L]
        [--draft off]

`splitpoint serve` and `splitpoint run` in processes of their own. `run` reports its own high-water
mark as the kernel counts it (VmHWM); with the refused limit it must exit 1 before loading, and
say what would fit. Prints JSON last; exit 1 when the limit did not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.edge.facts import machine
from splitpoint.server_process import serving
from splitpoint.views.sizes import parse_size


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--limit", default="160MiB")
    parser.add_argument("--refused", default="60MiB")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--level", default="auto")
    parser.add_argument("--draft", default="auto", help="off: times between tokens that compare")
    arguments = parser.parse_args()
    with serving(arguments.bundle, ["--kv-memory", "256MiB"]) as address:
        command = [sys.executable, "-m", "splitpoint", "run", str(arguments.bundle)]
        command += ["--server", address, "--chat", "Tell me a very long story about boats."]
        command += ["--max-new-tokens", str(arguments.tokens), "--ignore-eos", "--json"]
        command += ["--level", arguments.level, "--draft", arguments.draft]
        held = subprocess.run(
            [*command, "--memory-limit", arguments.limit],
            capture_output=True,
            text=True,
            check=True,
        )
        free = subprocess.run(command, capture_output=True, text=True, check=True)
        refused = subprocess.run(
            [*command, "--memory-limit", arguments.refused],
            capture_output=True,
            text=True,
            check=False,
        )
    limited, unlimited = json.loads(held.stdout), json.loads(free.stdout)
    limit_bytes = parse_size(arguments.limit)
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "limit_bytes": limit_bytes,
        "peak_bytes": limited["peak_memory_bytes"],
        "peak_bytes_without_limit": unlimited["peak_memory_bytes"],
        "tokens": len(limited["tokens"]),
        "level_counts": limited["level_counts"],
        "same_tokens_as_without_limit": limited["tokens"] == unlimited["tokens"],
        "tbt_p50_s": limited["tbt_p50_s"],
        "tbt_p50_s_without_limit": unlimited["tbt_p50_s"],
        "refused": {
            "limit": arguments.refused,
            "exit_status": refused.returncode,
            "says": refused.stderr.strip(),
        },
    }
    print(json.dumps(report))
    return 0 if report["peak_bytes"] <= limit_bytes and refused.returncode == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
