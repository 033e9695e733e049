"""Which drafter a name gives on which device, with kinds of the tests' own."""

from __future__ import annotations

from typing import Any

import pytest

from edge.draft import factory
from edge.draft.acceptance import Acceptance
from edge.draft.base import Drafter, DrafterKind, Guess
from edge.draft.best_of import BestOf
from edge.draft.factory import DrafterFactory
from edge.errors import InputError
from tests.edge.draft.saying import Saying

ANY_BUNDLE: Any = None


def kind(name: str, *, in_auto: bool = True, is_there: bool = True) -> DrafterKind:
    def make() -> Drafter:
        return Saying(Guess(1, name, 0.5))

    return DrafterKind(
        name=name,
        open=lambda resources: make if is_there else None,
        missing=f"{name} needs a thing",
        in_auto=in_auto,
    )


def drafters(monkeypatch: pytest.MonkeyPatch, *kinds: DrafterKind) -> DrafterFactory:
    monkeypatch.setattr(factory, "KINDS", kinds)
    monkeypatch.setattr(factory, "NAMES", ("auto", "off", *(kind.name for kind in kinds)))
    monkeypatch.setattr(factory, "_MISSING", {kind.name: kind.missing for kind in kinds})
    return DrafterFactory(ANY_BUNDLE)


def test_a_new_kind_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drafters(monkeypatch, kind("a"), kind("new", in_auto=False))
    drafter = made.drafter("new", Acceptance())
    assert drafter is not None
    assert drafter.guesses() == (Guess(1, "new", 0.5),)


def test_every_generation_gets_a_drafter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drafters(monkeypatch, kind("a"))
    assert made.drafter("a", Acceptance()) is not made.drafter("a", Acceptance())


def test_auto_combines_the_kinds_that_are_there_and_meant_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = drafters(monkeypatch, kind("a"), kind("b"), kind("c", in_auto=False))
    combined = both.drafter("auto", Acceptance())
    assert isinstance(combined, BestOf)
    assert [guess.kind for guess in combined.guesses()] == ["a+b"]
    alone = drafters(monkeypatch, kind("a"), kind("b", is_there=False))
    assert isinstance(alone.drafter("auto", Acceptance()), Saying)


def test_off_is_no_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert drafters(monkeypatch, kind("a")).drafter("off", Acceptance()) is None


def test_a_kind_that_is_not_there_or_unknown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drafters(monkeypatch, kind("a"), kind("b", is_there=False))
    made.check("auto")
    with pytest.raises(InputError, match="b needs a thing"):
        made.check("b")
    with pytest.raises(InputError, match="no drafter 'magic': choose one of auto, off, a, b"):
        made.drafter("magic", Acceptance())
