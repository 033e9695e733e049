"""A thousand requests through `splitpoint api` in a row: nothing grows.

    python benchmarks/edge/api_soak.py --bundle BUNDLE [--requests 1000] [--tokens 3]

`splitpoint serve` and `splitpoint api` in processes of their own; the official `openai` client
asks: chats and plain completions, streamed and whole, some broken off by the client, some refused.
Memory, open files, sockets and threads of both processes and the server's KV, after a warm-up of a
tenth of the requests and at the end. JSON last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import psutil

from benchmarks.edge.facts import machine, process_figures
from edge.net.grpc_transport import GrpcTransport
from splitpoint.server_process import serving

MESSAGES: Any = [{"role": "user", "content": "Say something about boats."}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=3)
    arguments = parser.parse_args()
    warm_up = arguments.requests // 10
    outcomes: dict[str, int] = {}
    samples: list[dict[str, Any]] = []
    with (
        serving(arguments.bundle, ["--kv-memory", "256MiB"]) as address,
        api(arguments.bundle, address) as (url, api_pid),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        (server_pid,) = (
            child.pid
            for child in psutil.Process().children()
            if child.pid != api_pid and "serve" in child.cmdline()
        )
        model = next(iter(client.models.list())).id
        started_s = time.monotonic()
        for index in range(arguments.requests):
            kind = ask(client, model, index, arguments.tokens)
            outcomes[kind] = outcomes.get(kind, 0) + 1
            if (index + 1) % warm_up == 0:
                samples.append(
                    {
                        "requests": index + 1,
                        "api": process_figures(api_pid),
                        "server": process_figures(server_pid),
                        "server_kv_bytes": settled_kv_bytes(address),
                    }
                )
                print(samples[-1], file=sys.stderr)
        took_s = time.monotonic() - started_s
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "requests": arguments.requests,
        "took_s": took_s,
        "outcomes": outcomes,
        "after_warm_up": samples[0],
        "at_the_end": samples[-1],
        "samples": samples,
    }
    print(json.dumps(report))
    return 0


def ask(client: openai.OpenAI, model: str, index: int, tokens: int) -> str:
    """One request of one of five kinds; returns which it was."""
    kind = index % 5
    common: Any = {"model": model, "max_tokens": tokens, "temperature": 0.7}
    if kind == 0:
        client.chat.completions.create(messages=MESSAGES, **common)
        return "chat"
    if kind == 1:
        for _ in client.chat.completions.create(messages=MESSAGES, stream=True, **common):
            pass
        return "chat streamed"
    if kind == 2:
        client.completions.create(prompt=f"Boat number {index}", logprobs=1, **common)
        return "completion"
    if kind == 3:
        try:
            client.chat.completions.create(messages=MESSAGES, n=2, **common)
        except openai.BadRequestError:
            return "refused"
        raise RuntimeError("n=2 was not refused")
    common["max_tokens"] = 200
    stream = client.completions.create(prompt="Count the boats", stream=True, **common)
    next(iter(stream))
    stream.close()
    wait_until_idle(client)
    return "broken off"


def wait_until_idle(client: openai.OpenAI) -> None:
    """The next request needs the front that the broken one gives back."""
    import httpx

    health = str(client.base_url).replace("/v1/", "/health")
    while httpx.get(health).json()["running"]:
        time.sleep(0.005)


def settled_kv_bytes(address: str) -> int:
    transport = GrpcTransport(address)
    try:
        return transport.describe(5.0).kv_bytes_in_use
    finally:
        transport.close()


@contextmanager
def api(bundle: Path, server: str) -> Iterator[tuple[str, int]]:
    command = [sys.executable, "-m", "splitpoint", "api", str(bundle), "--server", server]
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        yield f"http://{line.removeprefix('listening on ').strip()}", process.pid
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    sys.exit(main())
