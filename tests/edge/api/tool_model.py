"""A client of a tiny model whose template knows tools, and a tool for it."""

from __future__ import annotations

import shutil
import tempfile
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
    """The chat bundle with a template that knows tools, as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        shutil.copytree(bench.chat_bundle(SPLIT), bundle)  # others use the bundle too
        (bundle / "edge" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        write_manifest(bundle)
        yield bundle


@contextmanager
def tool_client(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    """A client of it with two caches."""
    with (
        tool_bundle(bench) as bundle,
        EdgeClient(bundle, server.address, concurrency=2) as client,
    ):
        yield client
