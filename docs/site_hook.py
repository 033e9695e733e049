"""What MkDocs does not do by itself for this documentation; `mkdocs.yml` names this file.

- The navigation comes from the lists of `docs/README.md`. So a new page has one place to be named.
- Pages outside `docs/` that a page links to are part of the site, with their links turned.
- Headings have the anchors that GitHub gives them. So one link works in both places.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[1]
INDEX: Final = "README.md"
# Pages outside docs/, by their place in the repository: their place in the site.
OUTSIDE: Final = {
    "benchmarks/METHODOLOGY.md": "results/methodology.md",
    "CHANGELOG.md": "changelog.md",
}
LINK: Final = re.compile(r"(\[[^\]]*\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_ITEM: Final = re.compile(r"- \[([^\]]+)\]\(([^)#]+\.md)\)")


def anchor_of(heading: str, separator: str = "-") -> str:
    """The anchor that GitHub gives a heading's plain text."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", separator)


def navigation(index: str) -> list[dict[str, Any]]:
    """The entries of the navigation that the text of the index names, a section a heading."""
    entries: list[dict[str, Any]] = [{"Home": INDEX}]
    for line in index.splitlines():
        if line.startswith("## "):
            entries.append({line.removeprefix("## "): []})
        elif found := _ITEM.match(line):
            title, target = found.groups()
            next(iter(entries[-1].values())).append({title: _place("docs/" + INDEX, target)})
    return entries


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the navigation from the index, and the anchors from GitHub's rule."""
    config.nav = navigation((ROOT / "docs" / INDEX).read_text(encoding="utf-8"))
    config.mdx_configs["toc"]["slugify"] = anchor_of
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for name, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links from and to pages that lie outside docs/."""
    place = page.file.src_uri
    inside = {there: name for name, there in OUTSIDE.items()}
    home = inside.get(place, f"docs/{place}")

    def turned(match: re.Match[str]) -> str:
        before, target, after = match.groups()
        if re.match(r"[a-z]+:", target):
            return match.group(0)
        relative = posixpath.relpath(_place(home, target), posixpath.dirname(place) or ".")
        return f"{before}{relative}{after}"

    return LINK.sub(turned, markdown)


def _place(page: str, target: str) -> str:
    """Where the target of a link is in the site. page: its place in the repository."""
    name = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    return OUTSIDE.get(name, name.removeprefix("docs/"))
