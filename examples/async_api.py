"""Several answers at once from Python, with credentials for a server that is not on this machine.

python examples/async_api.py BUNDLE HOST:PORT
python examples/async_api.py BUNDLE HOST:PORT --tls-ca ca.pem --token-file token
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from splitpoint import AsyncEdgeClient, CompletionRequest, Credentials

QUESTIONS = ("Why is the sky blue?", "What is a prime number?")


async def ask_all(bundle: str, server: str, credentials: Credentials) -> None:
    request = CompletionRequest(max_new_tokens=32)
    async with AsyncEdgeClient(bundle, server, credentials=credentials, concurrency=2) as client:
        answers = await asyncio.gather(
            *(client.complete(question, request) for question in QUESTIONS)
        )
        for question, answer in zip(QUESTIONS, answers, strict=True):
            print(f"{question}\n{answer.text.strip()}\n")
        async for piece in client.stream("Once upon a time", request):
            print(piece.text, end="", flush=True)
    print()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("server")
    parser.add_argument("--tls-ca", type=Path)
    parser.add_argument("--token-file", type=Path)
    asked = parser.parse_args(argv)
    token = asked.token_file and asked.token_file.read_text(encoding="utf-8").strip()
    asyncio.run(ask_all(asked.bundle, asked.server, Credentials(ca_file=asked.tls_ca, token=token)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
