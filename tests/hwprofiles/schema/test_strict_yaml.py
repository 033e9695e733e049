"""Claims about the strict YAML loader: what is read, and what each mistake says."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_yaml import load_strict, parse_value


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    bytes_per_s: float
    source: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    name: str
    count: int
    rates: tuple[Rate, ...]
    pair: tuple[float, str] = (0.0, "")
    table: dict[str, Rate] | None = None
    colour: Colour = Colour.RED

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")


GOOD = "name: a\ncount: 2\nrates: [{bytes_per_s: 1e9}, {bytes_per_s: 3, source: tape}]\n"


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load_strict(path, Config)


def test_lists_become_tuples_integers_become_floats_and_exponents_are_numbers(
    tmp_path: Path,
) -> None:
    config = load(tmp_path, GOOD + "pair: [1, x]\ntable: {k: {bytes_per_s: 7}}\ncolour: red\n")
    assert config == Config(
        name="a",
        count=2,
        rates=(Rate(bytes_per_s=1e9), Rate(bytes_per_s=3.0, source="tape")),
        pair=(1.0, "x"),
        table={"k": Rate(bytes_per_s=7.0)},
        colour=Colour.RED,
    )
    assert type(config.rates[1].bytes_per_s) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD + "colr: red\n",
            r"config.yaml: unknown key 'colr'; allowed here: name, count",
        ),
        (
            "name: a\ncount: 1\nrates: [{bytes_per_s: 1}, {bps: 1}]\n",
            r"unknown key 'rates\[1\].bps'; allowed here: bytes_per_s, source",
        ),
        ("count: 1\nrates: []\n", r"missing key 'name'; allowed here: name, count"),
        (GOOD + "table: {k: {source: x}}\n", r"missing key 'table.k.bytes_per_s'"),
        (GOOD.replace("count: 2", "count: two"), r"'count' must be an integer, not 'two'"),
        (GOOD.replace("count: 2", "count: 2.5"), r"'count' must be an integer, not 2.5"),
        (GOOD.replace("count: 2", "count: true"), r"'count' must be an integer, not True"),
        (GOOD.replace("1e9", ".inf"), r"'rates\[0\].bytes_per_s' must be finite"),
        (GOOD.replace("count: 2", "count: -2"), r"config.yaml: count must not be negative"),
        (GOOD + "count: 3\n", r"not valid YAML: .*duplicate key 'count'"),
        (GOOD + "pair: [1]\n", r"'pair' needs 2 items, has 1"),
        (GOOD + "colour: blue\n", r"'blue' is not a valid Colour"),
        ("- a\n", r"the top level must be a mapping with keys name, count"),
        ("a: [", r"not valid YAML"),
        (GOOD.replace("name: a", "name: 7"), r"'name' must be text, not 7"),
        (GOOD.replace("1e9", "1" + "0" * 400), r"'rates\[0\].bytes_per_s' must be finite"),
        (GOOD.replace("count: 2", "count: 1" + "0" * 6000), r"not valid YAML|must be finite"),
        (GOOD.replace("name: a", "name: 2026-13-45"), r"not valid YAML|'name' must be text"),
        ("a: " + "[" * 100_000, r"not valid YAML|nested too deeply"),
        ("name: a\ncount: 2\nrates: {bytes_per_s: 1}\n", r"'rates' must be a list"),
        ("", r"the top level must be a mapping"),
    ],
)
def test_every_mistake_names_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "config.yaml"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_a_profile_error(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nowhere.yaml: cannot be read"):
        load_strict(tmp_path / "nowhere.yaml", Config)


@dataclass(frozen=True, kw_only=True)
class Nested:
    x: list[list[list[list[list[list[list[list[list[int]]]]]]]]]


def test_aliases_that_stand_for_more_values_than_memory_holds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(f"x: {_expand(8)}\n")
    assert path.stat().st_size < 1000
    with pytest.raises(ProfileError, match=r"bomb.yaml: more than 1000000 values"):
        load_strict(path, Nested)


def _expand(depth: int) -> str:
    """A flow list whose items are anchors and aliases, ten of each level."""
    if depth == 0:
        return "&x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"
    return f"&x{depth} [{_expand(depth - 1)}, {', '.join([f'*x{depth - 1}'] * 9)}]"


def test_a_file_that_is_too_large_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * ((16 << 20) + 1))
    with pytest.raises(ProfileError, match=r"large.yaml: larger than 16 MiB"):
        load_strict(path, Config)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_strict(path, Config).name == "a"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{[1, 2]: 3}", "a key must be text or a number"),
        ("&x {? *x : 1}", "a key must be text or a number"),
        ("a: !!bool maybe", "not valid YAML"),
        ("a: !!int ''", "not valid YAML"),
        ("a: !!float ''", "not valid YAML"),
        ("a: !!timestamp soon", "not valid YAML"),
        ("a: &x [*x]", "more than 1000000 values"),
        ("a: 1" + ":1" * 100_000, "more than 1000 digits"),
        ("a: 1." + "0" * 2000, "more than 1000 digits"),
        ('a: "\\ud83d"', "half of a surrogate pair"),
    ],
)
def test_what_pyyaml_stumbles_over_is_one_clear_line(text: str, reason: str) -> None:
    with pytest.raises(ProfileError, match=reason) as caught:
        parse_value(text, source="config.yaml")
    assert str(caught.value).startswith("config.yaml: ")
    assert "\n" not in str(caught.value)
