"""No text file, pipe or temporary file of the product is read in the locale's encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("splitpoint", "hwprofiles", "codec", "protos", "decoding", "optimizer", "edge", "cloud")
# Where the encoding stands when it has no name, by what is called.
ENCODING_PLACE = {"read_text": 0, "write_text": 1}
PROCESS_CALLS = ("run", "Popen", "check_output", "check_call")
TEMPORARY = ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile")


def offences(tree: ast.AST) -> Iterator[int]:
    """Lines of calls that would take the locale's encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords:
            continue
        if (
            (name in ENCODING_PLACE and len(node.args) <= ENCODING_PLACE[name])
            or (name in PROCESS_CALLS and {"text", "universal_newlines"} & set(keywords))
            or (name in ("open", "fdopen", *TEMPORARY) and opens_text(node, name, keywords))
        ):
            yield node.lineno


def opens_text(node: ast.Call, name: str, keywords: dict[str | None, ast.expr]) -> bool:
    """Whether a call opens a file as text. Calls without a mode count when they look like one."""
    is_method = isinstance(node.func, ast.Attribute) and name == "open"
    place = 0 if is_method or name in TEMPORARY else 1
    mode = keywords.get("mode") or (node.args[place] if len(node.args) > place else None)
    if isinstance(mode, ast.Constant) and isinstance(mode.value, str):
        return "b" not in mode.value
    if mode is not None or name in TEMPORARY:
        return False
    return not is_method or not (node.args or keywords)


def test_every_text_file_and_pipe_names_its_encoding() -> None:
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(ROOT)}:{line}" for line in offences(tree)]
    # Doors that are called `open` and open no file.
    assert [place for place in found if place.rpartition(":")[0] not in OPEN_NO_FILE] == []


OPEN_NO_FILE = {"edge/generation/connector.py"}  # a session that opens


def test_the_check_finds_what_it_looks_for() -> None:
    bad = [
        "p.read_text()",
        "p.write_text(x)",
        "open(p)",
        "open(p, 'w')",
        "p.open()",
        "p.open('a')",
        "subprocess.run(c, text=True)",
        "TemporaryFile('w+')",
        "os.fdopen(n, 'r')",
    ]
    good = [
        "p.read_text('utf-8')",
        "p.write_text(x, 'utf-8')",
        "open(p, 'rb')",
        "p.open('wb')",
        "p.open(encoding='utf-8')",
        "subprocess.run(c, encoding='utf-8')",
        "TemporaryFile()",
        "kind.open(resources)",
    ]
    assert [text for text in bad if not list(offences(ast.parse(text)))] == []
    assert [text for text in good if list(offences(ast.parse(text)))] == []
