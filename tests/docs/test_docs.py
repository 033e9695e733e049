"""The documentation keeps its promises: links resolve, named things exist, sentences are short.

Reads text only, apart from the command tree, whose modules import nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from splitpoint.cli import COMMANDS, make_app

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
KINDS: Final = ("guides", "reference", "concepts", "results")
OTHER_PAGES: Final = ("README.md", "architecture.md", "faq.md", "glossary.md")
# Every file of these folders that a page names must be there.
NAMED_FOLDERS: Final = (
    "benchmarks",
    "cloud",
    "codec",
    "decoding",
    "deploy",
    "edge",
    "examples",
    "hwprofiles",
    "optimizer",
    "protos",
    "splitpoint",
    "tests",
)

MOST_LINE_CHARACTERS: Final = 120
MOST_SENTENCE_WORDS: Final = 35
MOST_MEAN_SENTENCE_WORDS: Final = 18
FEWEST_SENTENCES_FOR_A_MEAN: Final = 5

OUTSIDE: Final = (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "METHODOLOGY.md")
PAGES: Final = sorted([*DOCS.rglob("*.md"), *OUTSIDE])
LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND_OF_READER: Final = re.compile(r"splitpoint ((?!import\b)[a-z][a-z-]*(?: [a-z][a-z-]*)?)")
GENERATED: Final = re.compile(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", re.DOTALL)
every_page: Final = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def written(page: Path) -> str:
    """The text of a page without the blocks that a benchmark writes between its markers."""
    return GENERATED.sub("", page.read_text(encoding="utf-8"))


def without_code_blocks(text: str) -> list[str]:
    """The lines outside fenced and indented code; those inside become empty."""
    lines, fenced, after_blank = [], False, True
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        indented = line.startswith("    ") and after_blank
        lines.append("" if fenced or fence or indented else line)
        fenced ^= fence
        after_blank = indented or not line.strip()
    return lines


def code_of(text: str) -> Iterator[str]:
    """Every piece of code of a page: each line of a block, and each span within a line."""
    outside = without_code_blocks(text)
    for line, prose in zip(text.splitlines(), outside, strict=True):
        if line and not prose:
            yield line
    for span in re.findall(r"`([^`]+)`", "\n".join(outside)):
        yield span.replace("\n", " ")


def anchor_of(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors_of(page: Path) -> set[str]:
    """The anchors of all headings of a page."""
    lines = without_code_blocks(page.read_text(encoding="utf-8"))
    return {anchor_of(line.lstrip("#")) for line in lines if re.match(r"#{1,6} ", line)}


def is_table(line: str) -> bool:
    """Whether the line is a row of a table."""
    return line.lstrip().startswith("|")


def prose_of(text: str) -> Iterator[str]:
    """The paragraphs and list items of a page, without code, tables, headings and images."""
    parts: list[str] = []
    for line in [*without_code_blocks(text), ""]:
        stripped = line.strip()
        starts = re.match(r"(?:[-*]|\d+\.)\s+", stripped)
        if not stripped or starts or is_table(line) or stripped[0] in "#<!":
            if parts:
                yield " ".join(parts)
            parts = []
        if stripped and not is_table(line) and stripped[0] not in "#<!":
            parts.append(stripped[starts.end() :] if starts else stripped)


def sentences_of(text: str) -> list[str]:
    """The sentences of a page. Inline code and the text of a link count as written words."""
    found = []
    for paragraph in prose_of(text):
        plain = re.sub(r"`[^`]*`", "code", paragraph)
        plain = LINK.sub(lambda match: match.group(0)[1:].partition("]")[0], plain)
        plain = re.sub(r"[*_]{1,2}", "", plain)
        found += re.split(r"(?<=[.!?:;])\s+(?=[A-Z0-9\"(]|code)", plain)
    return [sentence for sentence in found if len(sentence.split()) > 1]


def test_every_page_is_of_one_kind() -> None:
    for page in DOCS.rglob("*.md"):
        place = page.relative_to(DOCS)
        known = str(place) in OTHER_PAGES or (len(place.parts) == 2 and place.parts[0] in KINDS)
        assert known, f"{place}: a page lies in {', '.join(KINDS)}, or is one of {OTHER_PAGES}"


def test_the_index_names_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    named = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall(index)}
    missing = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page not in named]
    assert sorted(missing) == ["README.md"]


@every_page
def test_links_and_images_resolve(page: Path) -> None:
    text = "\n".join(without_code_blocks(page.read_text(encoding="utf-8")))
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        lacks_anchor = anchor and file.suffix == ".md" and anchor not in anchors_of(file)
        if not file.exists() or lacks_anchor:
            broken.append(target)
    assert broken == []


@every_page
def test_lines_are_short(page: Path) -> None:
    lines = written(page).splitlines()
    long = [line for line in lines if len(line) > MOST_LINE_CHARACTERS and not is_table(line)]
    assert long == []


@every_page
def test_sentences_are_short(page: Path) -> None:
    sentences = sentences_of(written(page))
    long = [text for text in sentences if len(text.split()) > MOST_SENTENCE_WORDS]
    assert long == []
    if len(sentences) >= FEWEST_SENTENCES_FOR_A_MEAN:
        mean = sum(len(text.split()) for text in sentences) / len(sentences)
        assert mean <= MOST_MEAN_SENTENCE_WORDS


@every_page
def test_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pattern = rf"(?<![\w/.-])(?:{'|'.join(NAMED_FOLDERS)})/[\w./-]+\.\w+"
    assert [name for name in re.findall(pattern, text) if not (ROOT / name).exists()] == []


@cache
def command_tree() -> dict[str, Any]:
    """Every command by its words, such as `profile device`."""
    root: Any = typer.main.get_command(make_app(COMMANDS))
    found: dict[str, Any] = {"": root}
    for name, command in root.commands.items():
        found[name] = command
        for child_name, child in getattr(command, "commands", {}).items():
            found[f"{name} {child_name}"] = child
    return found


@every_page
def test_named_commands_exist(page: Path) -> None:
    tree = command_tree()
    unknown = []
    for code in code_of(page.read_text(encoding="utf-8")):
        for words in COMMAND_OF_READER.findall(code):
            first, _, second = words.partition(" ")
            is_group = f"{first} {second}" in tree or not hasattr(tree.get(first), "commands")
            if first not in tree or (second and not is_group):
                unknown.append(words)
    assert unknown == []


def test_the_reference_has_every_option_of_every_command() -> None:
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    missing = [
        f"{name} {option}"
        for name, command in command_tree().items()
        for parameter in command.params
        for option in [*parameter.opts, *parameter.secondary_opts]
        if option.startswith("--") and option != "--help" and f"`{option}" not in text
    ]
    assert missing == []
