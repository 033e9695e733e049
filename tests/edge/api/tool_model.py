"""A client of a tiny model whose template knows tools, and a tool for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge.client import EdgeClient
from optimizer.artifacts.manifest import write_manifest
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer

SPLIT = 2
TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}\n"
    "{% endfor %}assistant:"
)
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "pick",
        "parameters": {
            "type": "object",
            "properties": {"color": {"enum": ["red", "blue"]}},
            "required": ["color"],
            "additionalProperties": False,
        },
    },
}
FLAT_TOOL: Any = {"type": "function", **TOOL["function"]}  # as /v1/responses has it


@contextmanager
def tool_bundle(bench: ModelBench) -> Iterator[Path]:
    """The chat bundle, whose template knows tools for as long as the block lasts."""
    bundle = bench.chat_bundle(SPLIT)
    template = bundle / "edge" / "chat_template.jinja"
    before = template.read_text()
    template.write_text(TEMPLATE)
    write_manifest(bundle)
    try:
        yield bundle
    finally:
        template.write_text(before)
        write_manifest(bundle)


@contextmanager
def tool_client(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    """A client of it with two caches."""
    with (
        tool_bundle(bench) as bundle,
        EdgeClient(bundle, server.address, concurrency=2) as client,
    ):
        yield client
