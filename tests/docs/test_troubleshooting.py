"""Every message that the page of troubleshooting quotes is one that the program prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import Final

import pytest

from tests.docs.guide_shell import ROOT, blocks_of

PAGE: Final = ROOT / "docs" / "guides" / "troubleshooting.md"
ROOMS: Final = ("splitpoint", "hwprofiles", "codec", "protos", "optimizer", "edge", "cloud")
HOLE: Final = "\N{REPLACEMENT CHARACTER}"  # where a text of the source has a value
MESSAGES: Final = [
    line for language, text in blocks_of(PAGE) if language == "text" for line in text.splitlines()
]


def texts_of(tree: ast.Module) -> Iterator[str]:
    """Every text of a module, with HOLE where a value is put in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def program() -> str:
    """All texts of the program, one a line."""
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return "\n".join(text.replace("\n", " ") for tree in trees for text in texts_of(tree))


def is_printed(message: str) -> bool:
    """Whether a text of the program has the message's words; `...` stands for anything."""
    words = [re.escape(part) for part in message.split("...")]
    return re.search("[^\n]*".join(words), program()) is not None


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_prints_the_message(message: str) -> None:
    assert is_printed(message)


def test_a_message_that_nobody_prints_is_found() -> None:
    assert len(MESSAGES) > 20
    assert not is_printed("the flux of ... is inverted")
