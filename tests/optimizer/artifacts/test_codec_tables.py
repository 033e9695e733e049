"""Names of codec tables, and the files that they stand for."""

from __future__ import annotations

import pytest

from optimizer.artifacts.codec_tables import (
    MAX_NAMED_TABLES,
    check_splits,
    checked_tables_name,
    listed_tables,
    quality_name,
    tables_name,
    text_name,
)
from optimizer.errors import BundleError


def test_the_default_tables_lie_where_they_always_did() -> None:
    assert tables_name(10) == "codec/split-10.tables"
    assert quality_name(10) == "codec/split-10.quality.json"
    assert tables_name(10, "code") == "codec/code/split-10.tables"
    assert text_name("code") == "codec/code/text.json"


def test_tables_are_listed_by_name_and_split_and_nothing_else_is() -> None:
    files = ["codec/b/split-3.tables", "codec/a/split-12.tables", "codec/a/split-3.tables"]
    others = ["codec/split-3.quality.json", "codec/a/text.json", "codec/a/b/split-3.tables"]
    more = ["codec/split-03.tables", "cloud/split-3.tables", "codec/split-3.tables.new"]
    found = listed_tables([*files, *others, *more])
    assert list(found) == ["default", "a", "b"]
    assert found["default"] == {}
    assert found["a"] == {3: "codec/a/split-3.tables", 12: "codec/a/split-12.tables"}
    assert listed_tables([*files, "codec/split-3.tables"])["default"] == {3: "codec/split-3.tables"}


@pytest.mark.parametrize("name", ["a", "code-2", "0_x", "a" * 32])
def test_a_name_is_a_folder_on_any_system(name: str) -> None:
    assert checked_tables_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "auto", "A", "a.b", "a b", "-a", "..", "a/b", "ä", "a" * 33, "a\n", "con\x00", "a" * 9999],
)
def test_other_names_are_refused_in_one_short_line(name: str) -> None:
    with pytest.raises(BundleError) as error:
        checked_tables_name(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("folder", ["A", "a b", "auto", "..", ""])
def test_a_bundle_with_such_a_folder_is_refused(folder: str) -> None:
    with pytest.raises(BundleError, match="cannot be named"):
        listed_tables([f"codec/{folder}/split-1.tables"])


def test_a_bundle_has_a_bounded_number_of_tables() -> None:
    files = [f"codec/t{number}/split-1.tables" for number in range(MAX_NAMED_TABLES)]
    assert len(listed_tables([*files, "codec/split-1.tables"])) == MAX_NAMED_TABLES + 1
    with pytest.raises(BundleError, match="17 named tables"):
        listed_tables([*files, "codec/more/split-1.tables"])
    with pytest.raises(BundleError, match="codec/ itself"):
        listed_tables(["codec/default/split-1.tables"])


def test_named_tables_have_every_split_of_the_plan() -> None:
    check_splits("default", {}, (1, 2))  # then only lossless is there
    check_splits("code", {1: "", 2: "", 3: ""}, (1, 2))
    with pytest.raises(BundleError, match="lack split 2"):
        check_splits("code", {1: ""}, (1, 2))
