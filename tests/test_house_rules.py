"""Rules about the shape of the code, checked over every product file.

One class name for one idea, a docstring on every public name, short functions, short files.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("splitpoint", "hwprofiles", "codec", "protos", "decoding", "optimizer", "edge", "cloud")
MOST_FUNCTION_LINES = 80
MOST_FILE_LINES = 350
MOST_COMMAND_LINES = 60
MOST_COMMAND_PARAMETERS = 8
# A longer file says why within its first lines, after these words.
REASON_FOR_LENGTH = "Long because"

# Class names that stand for one idea in two places, each with the reason.
SHARED_CLASS_NAMES: dict[str, str] = {}


def product_files() -> list[Path]:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in files if "_pb2" not in path.name]


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_a_class_name_stands_for_one_idea() -> None:
    homes: dict[str, list[str]] = {}
    for path in product_files():
        for node in parsed(path).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name_of(path))
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert {name: twice[name] for name in twice if name not in SHARED_CLASS_NAMES} == {}
    assert set(SHARED_CLASS_NAMES) <= set(twice), "an exception that nobody needs any more"


def test_public_names_have_docstrings() -> None:
    without = [
        f"{name_of(path)}: {where}"
        for path in product_files()
        for where, node in public_definitions(parsed(path))
        if ast.get_docstring(node) is None and not is_stub(node)
    ]
    assert without == []


def public_definitions(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public classes and functions of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node.name):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            yield node.name, node
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(
                    member.name
                ):
                    yield f"{node.name}.{member.name}", member


def is_stub(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A protocol's method without a body: the protocol's docstring speaks for it."""
    last = node.body[-1]
    return (
        not isinstance(node, ast.ClassDef)
        and isinstance(last, ast.Expr)
        and isinstance(last.value, ast.Constant)
        and last.value.value is Ellipsis
    )


def is_public(name: str) -> bool:
    return not name.startswith("_")


def test_every_module_says_what_it_is_for() -> None:
    silent = [name_of(path) for path in product_files() if ast.get_docstring(parsed(path)) is None]
    assert silent == []


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}: {node.name} has {length(node)} lines"
        for path in product_files()
        for node in functions(parsed(path))
        if length(node) > MOST_FUNCTION_LINES
    ]
    assert long == []


def test_files_are_short_or_say_why_not() -> None:
    long = []
    for path in product_files():
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > MOST_FILE_LINES and REASON_FOR_LENGTH not in "\n".join(lines[:20]):
            long.append(f"{name_of(path)}: {len(lines)} lines")
    assert long == []


def test_a_command_is_short_and_takes_few_parameters() -> None:
    found = []
    for path in sorted((ROOT / "splitpoint" / "commands").glob("*.py")):
        for node in functions(parsed(path)):
            arguments = node.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
            if length(node) > MOST_COMMAND_LINES or count > MOST_COMMAND_PARAMETERS:
                found.append(
                    f"{name_of(path)}: {node.name}: {length(node)} lines, {count} parameters"
                )
    assert found == []


@pytest.mark.parametrize("folder", ["build", "utils", "common"])
def test_no_folder_has_a_name_that_says_nothing_or_that_tools_ignore(folder: str) -> None:
    found = [name_of(path) for room in ROOMS for path in (ROOT / room).rglob(folder)]
    assert found == []
