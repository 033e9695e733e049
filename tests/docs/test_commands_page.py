"""The page of commands is what the command itself says."""

from __future__ import annotations

from tests.docs.commands_page import MORE, PAGE, page, tree


def test_the_page_is_what_the_command_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.commands_page"


def test_the_page_points_on_from_commands_that_exist() -> None:
    assert set(MORE) <= set(tree())
