"""Several answers at once from Python, with credentials for a server that is not on this machine.

python examples/async_api.py BUNDLE HOST:PORT [CA_FILE TOKEN_FILE]
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from splitpoint import AsyncEdgeClient, CompletionRequest, Credentials

QUESTIONS = ("Why is the sky blue?", "What is a prime number?")


async def main(bundle: str, server: str, ca_file: str = "", token_file: str = "") -> None:
    credentials = None
    if ca_file:
        token = Path(token_file).read_text(encoding="utf-8").strip()
        credentials = Credentials(ca_file=Path(ca_file), token=token)
    request = CompletionRequest(max_new_tokens=32)
    async with AsyncEdgeClient(bundle, server, credentials=credentials, concurrency=2) as client:
        answers = await asyncio.gather(
            *(client.complete(question, request) for question in QUESTIONS)
        )
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n{answer.text.strip()}\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
