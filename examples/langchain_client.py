"""LangChain against `splitpoint api`: a structured answer, a tool call, and a stream.

    pip install langchain-openai
    python examples/langchain_client.py http://127.0.0.1:8000/v1 [API_KEY]

The server chooses tokens under a grammar for the structured answer and for the forced call. So
both parse, however small the model is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr


class Verdict(BaseModel):
    """What the model has to fill in."""

    is_true: bool = Field(description="whether the sentence is true")


@tool
def set_lamp(on: bool) -> str:
    """Turn the lamp on or off."""
    return "the lamp is on" if on else "the lamp is off"


def main(argv: Sequence[str] | None = None) -> int:
    base_url, *key = sys.argv[1:] if argv is None else argv
    model = ChatOpenAI(
        base_url=base_url,
        api_key=SecretStr(key[0] if key else "none"),
        model="any",  # the server has one model
        max_completion_tokens=64,
        temperature=0,
    )

    verdict = model.with_structured_output(Verdict).invoke("Is this true? Water is wet.")
    print(f"structured: {verdict!r}")

    # strict: no properties beside those of the tool.
    bound = model.bind_tools([set_lamp], tool_choice="set_lamp", strict=True)
    said = bound.invoke("It is dark in here.")
    for call in said.tool_calls:
        print(f"tool: {call['name']}({call['args']}) -> {set_lamp.invoke(call['args'])}")

    print("stream: ", end="")
    for chunk in model.stream("Why is the sky blue?"):
        print(chunk.text, end="", flush=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
