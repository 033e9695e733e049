"""`make docs` builds a site that has every page, and asks nothing of other servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
# Attributes that a browser follows by itself, by the element that has them.
FETCHED: Final = {"script": "src", "img": "src", "iframe": "src", "source": "srcset"}
FETCHED_LINKS: Final = ("stylesheet", "icon", "preload", "preconnect")


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """The site of the documentation in `folder`, as `make docs` makes it.

    Without `--quiet`: warnings that are not logged do not count for `--strict`.
    """
    arguments = ["build", "--strict", "--config-file", str(folder / "mkdocs.yml")]
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", *arguments, "--site-dir", str(out)],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Fetches(HTMLParser):
    """The addresses that a browser fetches when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in FETCHED:
            self.found.append(values.get(FETCHED[tag]) or "")
        if tag == "link" and values.get("rel") in FETCHED_LINKS:
            self.found.append(values.get("href") or "")


def test_the_site_has_every_page(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    named = [page.with_suffix(".html") for page in pages if page.name != "README.md"]
    assert [str(page) for page in named if not (site / page).is_file()] == []
    assert (site / "index.html").is_file()
    assert (site / "results" / "methodology.html").is_file()


def test_no_page_asks_another_server(site: Path) -> None:
    asked = {}
    for path in site.rglob("*.html"):
        fetches = Fetches()
        fetches.feed(path.read_text(encoding="utf-8"))
        foreign = [address for address in fetches.found if re.match(r"(?:[a-z]+:)?//", address)]
        if foreign:
            asked[str(path.relative_to(site))] = foreign
    assert asked == {}
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8"))


@pytest.mark.parametrize("broken", ["[x](missing.md)", "[x](glossary.md#no-such-term)", "[x](/y)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, broken: str) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    hookless = re.sub(r"hooks:\n  - .*\n", "", text)
    (tmp_path / "mkdocs.yml").write_text(hookless, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# A\n\n{broken}\n", encoding="utf-8")
    (tmp_path / "docs" / "glossary.md").write_text("# Terms\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "out").returncode != 0


def test_links_and_anchors_are_those_of_github() -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    from docs.site_hook import anchor_of, navigation

    assert anchor_of("Edge: run --json") == "edge-run---json"
    index = "# A\n\nSee [b](b.md).\n\n## Guides\n\n- [C](guides/c.md)\n- [D](../CHANGELOG.md)\n"
    assert navigation(index) == [
        {"Home": "README.md"},
        {"Guides": [{"C": "guides/c.md"}, {"D": "changelog.md"}]},
    ]
