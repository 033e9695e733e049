"""Kinds of codec: each listed once, asked for all that depends on a kind."""

from __future__ import annotations

import re

import pytest

from codec.entropy.integers import Families
from codec.errors import TablesError
from codec.frame import MIXED, MIXED_RECALLED
from codec.levels.base import CodecKind, LadderTables
from codec.levels.calibrated_kind import CALIBRATED, CalibratedKind
from codec.levels.lossless import LOSSLESS
from codec.levels.registry import (
    EXTRA_LEVELS,
    KINDS,
    LADDER_LEVELS,
    SAFE_LEVEL,
    check_kinds,
    coder_of,
    kind_of,
    rotation_bytes,
)
from codec.levels.split_model import SplitModel
from codec.levels.tabq_kind import TABQ


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lossless", LOSSLESS),
        ("q1", CALIBRATED),
        ("q12", CALIBRATED),
        ("tabq", TABQ),
        ("tabq3", TABQ),
        ("quick", CALIBRATED),  # nobody's: the dearest to run
    ],
)
def test_a_level_name_belongs_to_one_kind(name: str, kind: CodecKind) -> None:
    assert kind_of(name) is kind


def test_numbers_in_frames_are_part_of_the_format() -> None:
    numbers = {kind.name: kind.number for kind in KINDS}
    assert numbers | {"lossless": 0, "tabq": 1, "calibrated": 2} == numbers


def test_the_ladder_begins_lossless_and_loses_more_with_every_level() -> None:
    names = [level.name for level in LADDER_LEVELS]
    assert names[0] == "lossless"
    assert {"q1", "q2", "q3", "q4", "q5"} < set(names)
    assert {"tabq1", "tabq2", "tabq3"} <= {level.name for level in EXTRA_LEVELS}
    bits = [level.bits_per_element for level in LADDER_LEVELS]
    assert bits == sorted(bits, reverse=True)
    losses = [level.quality_loss_pct for level in LADDER_LEVELS]
    assert losses == sorted(losses)
    assert SAFE_LEVEL == "tabq1"


def test_the_coders_of_a_kind_write_its_number_into_frames(
    model: SplitModel, families: Families
) -> None:
    for kind in KINDS:
        assert kind.synthetic(model, families).kind == kind.number


def test_only_calibrated_levels_have_tables_and_a_ladder_holds_them_once() -> None:
    assert LOSSLESS.prediction_bytes(1000, 64) == TABQ.prediction_bytes(1000, 64) == 0
    assert CALIBRATED.prediction_bytes(1000, 64) == 64_000
    assert CALIBRATED.prediction_bytes(1 << 20, 4096) == 32 << 20
    assert rotation_bytes(576) == 2 * 4 * 576 * 576


def test_a_wide_rotation_is_in_blocks_only_where_they_divide_the_width() -> None:
    assert rotation_bytes(4096) == 2 * 4 * 4096 * 256
    assert rotation_bytes(2100) == 2 * 4 * 2100 * 2100


def test_an_entry_of_no_kind_or_without_its_tables_is_refused() -> None:
    tables = LadderTables(arrays={}, model=None, hidden_size=16)
    with pytest.raises(TablesError, match="unknown kind 'magic'"):
        coder_of({"name": "x", "kind": "magic"}, tables)
    with pytest.raises(TablesError, match="unknown kind 'lossless'"):
        coder_of({"name": "x", "kind": "lossless"}, tables)
    with pytest.raises(TablesError, match="no split model"):
        coder_of({"name": "q1", "kind": "calibrated", "step": 1.0, "slope": 0.3}, tables)


class SameNumber(CalibratedKind):
    name = "same number"
    level_pattern = re.compile("s1")
    levels = ()


class MixedNumber(CalibratedKind):
    name = "mixed"
    number = MIXED
    level_pattern = re.compile("m1")
    levels = ()


FREE_NUMBER = next(n for n in range(MIXED_RECALLED + 1, 8) if n not in {k.number for k in KINDS})


class SameName(CalibratedKind):
    number = FREE_NUMBER
    level_pattern = re.compile("n1")
    levels = ()


class SameLevels(CalibratedKind):
    name = "same levels"
    number = FREE_NUMBER


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (SameNumber(), "numbers"),
        (MixedNumber(), "numbers"),
        (SameName(), "names"),
        (SameLevels(), "claimed by"),
    ],
)
def test_kinds_that_share_a_number_a_name_or_a_level_are_refused(
    kind: CodecKind, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        check_kinds((*KINDS, kind))
