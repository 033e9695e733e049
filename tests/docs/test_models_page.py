"""The page of models lists the families and cases that are tested, no more and no fewer."""

from __future__ import annotations

from tests.docs.models_page import PAGE, page


def test_the_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.models_page"
