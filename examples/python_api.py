"""The Python API: one client, a streamed answer with a deadline, and what it cost.

    python examples/python_api.py BUNDLE HOST:PORT ["What is a heat pump?"]
    python examples/python_api.py BUNDLE HOST:PORT --tls-ca ca.pem --token-file token

BUNDLE is what `splitpoint build` made; `splitpoint serve BUNDLE` runs at HOST:PORT. A server on
another machine asks for TLS and a token: see docs/guides/production-server.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from splitpoint import CompletionRequest, Credentials, EdgeClient, SamplingParams


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("server")
    parser.add_argument("question", nargs="?", default="What is a heat pump?")
    parser.add_argument("--tls-ca", type=Path)
    parser.add_argument("--token-file", type=Path)
    asked = parser.parse_args(argv)
    token = asked.token_file and asked.token_file.read_text(encoding="utf-8").strip()
    credentials = Credentials(ca_file=asked.tls_ca, token=token)
    request = CompletionRequest(
        max_new_tokens=64,
        sampling=SamplingParams(temperature=0.7, top_p=0.9, seed=1),
        # When steps take longer, the client compresses harder. If nothing helps, the answer ends
        # early with finish_reason "deadline".
        deadline_tbt_s=0.5,
    )
    with EdgeClient(asked.bundle, asked.server, credentials=credentials) as client:
        # A conversation goes through the model's chat template; a plain string is continued.
        answer = client.start([{"role": "user", "content": asked.question}], request)
        for piece in answer:
            print(piece.text, end="", flush=True)
        print()
        done = answer.completion
    print(
        f"[{done.finish_reason}] first token after {1e3 * done.ttft_s:.0f} ms, "
        f"{done.tokens_per_s:.1f} tokens/s, {done.bits_per_element:.2f} bits an element up",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
