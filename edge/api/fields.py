"""Single fields of a request's body as checked values; null and absent are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edge.api.errors import ApiError, shown
from edge.errors import InputError
from edge.text_input import check_text

MAX_NUMBER: Final = 1e12


def check_texts(value: Any, where: str) -> None:
    """ApiError when a string anywhere in the body is no text: JSON may say "\\ud83d" alone."""
    if isinstance(value, str):
        try:
            check_text(value, where)
        except InputError as error:
            raise ApiError(str(error), param=where) from error
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, int):  # token ids are many
                check_texts(item, f"{where}[{index}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_texts(name, f"a name in {where or 'the body'}")
            check_texts(item, f"{where}.{name}" if where else name)


def check_known(value: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """ApiError for a field of an object that would be ignored."""
    for name, item in value.items():
        if name not in known and item is not None:
            raise ApiError(f"{where}.{shown(name)}: unknown field", param=where)


def name_field(body: Mapping[str, Any], name: str, default: str) -> str:
    """A string. ApiError names the field."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(f"{name} must be a string", param=name)
    return default if value is None else value


def maximum_field(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number of at least 1, or None."""
    value = integer_field(body, name)
    if value is not None and value < 1:
        raise ApiError(f"{name} must be at least 1", param=name)
    return value


def count_field(
    body: Mapping[str, Any], name: str, default: int | None, *, low: int, high: int
) -> int | None:
    """A whole number between `low` and `high`."""
    value = integer_field(body, name)
    if value is None:
        return default
    if not low <= value <= high:
        raise ApiError(f"{name} must lie between {low} and {high}", param=name)
    return value


def integer_field(body: Mapping[str, Any], name: str) -> int | None:
    """A whole number, or None."""
    value = body.get(name)
    if value is None:
        return None
    if not is_integer(value):
        raise ApiError(f"{name} must be an integer", param=name)
    return int(value)


def number_field(body: Mapping[str, Any], name: str, default: float | None) -> float | None:
    """A number of at most `MAX_NUMBER`, in size."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ApiError(f"{name} must be a number", param=name)
    if not -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN too, which Python's JSON knows
        raise ApiError(f"{name} is out of range", param=name)
    return value


def real_field(body: Mapping[str, Any], name: str, default: float) -> float:
    """A number, or the default."""
    value = number_field(body, name, default)
    return default if value is None else float(value)


def flag_field(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """True or false."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false", param=name)
    return value


def is_integer(value: Any) -> bool:
    """Whether a value of JSON is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)
