"""The Python API: one client, a streamed answer with a deadline, and what it cost.

    python examples/python_api.py BUNDLE HOST:PORT ["What is a heat pump?"]

BUNDLE is what `splitpoint build` made; `splitpoint serve BUNDLE` runs at HOST:PORT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from splitpoint import CompletionRequest, EdgeClient, SamplingParams


def main(argv: Sequence[str] | None = None) -> int:
    bundle, server, *question = sys.argv[1:] if argv is None else argv
    request = CompletionRequest(
        max_new_tokens=64,
        sampling=SamplingParams(temperature=0.7, top_p=0.9, seed=1),
        # When steps take longer, the client compresses harder. If nothing helps, the answer ends
        # early with finish_reason "deadline".
        deadline_tbt_s=0.5,
    )
    with EdgeClient(bundle, server) as client:
        # A conversation goes through the model's chat template; a plain string is continued.
        answer = client.start(
            [{"role": "user", "content": question[0] if question else "What is a heat pump?"}],
            request,
        )
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
