"""The registry of drafters: names, and what a new kind needs."""

from __future__ import annotations

from edge.draft.factory import _MISSING
from edge.draft.registry import AUTO, KINDS, NAMES, OFF


def test_every_kind_has_a_name_of_its_own_and_can_be_asked_for() -> None:
    assert NAMES == ("auto", "off", "ngram", "head", "cloud", "model")
    assert len(set(NAMES)) == len(NAMES)
    assert {kind.name for kind in KINDS} == set(NAMES) - {AUTO, OFF}


def test_automatic_drafting_takes_the_kinds_that_need_nothing_from_the_user() -> None:
    assert [kind.name for kind in KINDS if kind.in_auto] == ["ngram", "head", "cloud"]


def test_a_kind_that_a_device_may_lack_says_how_to_get_it() -> None:
    assert "train-draft" in _MISSING["head"]
    assert "--draft-model" in _MISSING["model"]
