"""LiteLLM against `splitpoint api`: a whole answer, a stream, and JSON of a schema.

    pip install litellm
    python examples/litellm_client.py http://127.0.0.1:8000/v1 [API_KEY]

The prefix `openai/` tells LiteLLM which API the server speaks. What follows it may be any name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import litellm

QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
SCHEMA = {
    "type": "object",
    "properties": {"is_true": {"type": "boolean"}},
    "required": ["is_true"],
    "additionalProperties": False,
}


def main(argv: Sequence[str] | None = None) -> int:
    base_url, *key = sys.argv[1:] if argv is None else argv
    request: dict[str, Any] = {
        "model": "openai/any",
        "api_base": base_url,
        "api_key": key[0] if key else "none",
        "max_tokens": 64,
        "temperature": 0,
    }

    answer = litellm.completion(**request, messages=QUESTION)
    print(f"whole: {answer.choices[0].message.content}")

    print("stream: ", end="")
    for chunk in litellm.completion(**request, messages=QUESTION, stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()

    schema = {"name": "verdict", "schema": SCHEMA, "strict": True}
    checked = litellm.completion(
        **request,
        messages=[{"role": "user", "content": "Is this true? Water is wet."}],
        response_format={"type": "json_schema", "json_schema": schema},
    )
    print(f"schema: {json.loads(checked.choices[0].message.content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
