"""The public Python API: what `splitpoint` exports, documents, and does not load before its use."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import splitpoint

EXPORTS = {
    "AsyncEdgeClient",
    "ChatMessage",
    "Completion",
    "CompletionRequest",
    "CompletionRun",
    "Credentials",
    "EdgeClient",
    "EdgeError",
    "Partition",
    "Plan",
    "RetryPolicy",
    "SamplingParams",
    "StepTrace",
    "TextPiece",
}


def test_the_exports_are_these() -> None:
    assert set(splitpoint.__all__) == EXPORTS
    assert splitpoint.__all__ == sorted(splitpoint.__all__)


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_every_export_is_a_documented_class_of_that_name(name: str) -> None:
    exported = getattr(splitpoint, name)
    assert inspect.isclass(exported)
    assert exported.__name__ == name
    assert inspect.getdoc(exported)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    """The imports under TYPE_CHECKING and the table of modules must not drift apart."""
    tree = ast.parse(Path(splitpoint.__file__).read_text())
    for_checkers = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert for_checkers == splitpoint._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = splitpoint.Nonsense


def test_importing_the_package_loads_none_of_its_parts() -> None:
    script = "import sys, splitpoint; print([m for m in ('edge', 'numpy') if m in sys.modules])"
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert finished.stdout.strip() == "[]"
