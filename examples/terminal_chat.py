"""A chat in the terminal without an end: the context shifts when the plan's tokens are used up.

    python examples/terminal_chat.py BUNDLE HOST:PORT [HOST:PORT ...]

The client falls back on the further addresses. /new begins a new conversation; an empty line ends
the chat.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from splitpoint import ChatMessage, CompletionRequest, EdgeClient, SamplingParams

SYSTEM: ChatMessage = {
    "role": "system",
    "content": "You are a helpful assistant on a small device.",
}


def main(argv: Sequence[str] | None = None, lines: TextIO = sys.stdin) -> int:
    bundle, *servers = sys.argv[1:] if argv is None else argv
    request = CompletionRequest(
        max_new_tokens=256,
        sampling=SamplingParams(temperature=0.2, top_p=0.9),
        context="shift",
    )
    messages: list[ChatMessage] = [SYSTEM]
    with EdgeClient(bundle, servers) as client:
        for line in lines:
            question = line.strip()
            if not question:
                break
            if question == "/new":
                messages = [SYSTEM]
                continue
            messages.append({"role": "user", "content": question})
            answer = client.start(messages, request)
            for piece in answer:
                print(piece.text, end="", flush=True)
            print()
            if answer.completion.finish_reason == "server_lost":
                print(f"(cut short: {answer.completion.finish_detail})", file=sys.stderr)
            messages.append({"role": "assistant", "content": answer.completion.text})
    return 0


if __name__ == "__main__":
    sys.exit(main())
