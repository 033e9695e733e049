"""Strict YAML: a file becomes a dataclass, and any key that does not belong is an error.

Every YAML file of this project (device and link profiles, plans, scenarios) is read here, so that
all of them fail alike: one line with the file, the path of the key, and the keys allowed there.

It is stricter than plain PyYAML, because each lenient reading has hidden a mistake in somebody's
configuration. Duplicate keys are refused. `1e9` is a number (YAML 1.1 reads it as text). true and
false are not numbers. NaN and infinity are refused. Size, depth and the number of values are
bounded, so a hostile file costs no more than a large honest one.
"""

from __future__ import annotations

import contextlib
import math
import re
import types
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hwprofiles.errors import ProfileError

T = TypeVar("T")

MAX_BYTES: Final = 16 << 20
MAX_VALUES: Final = 1_000_000
MAX_DIGITS: Final = 1000  # of a number: float64 ends at 309
_NAMES: Final = {str: "text", bool: "true or false", int: "an integer", float: "a number"}


def load_strict(path: str | Path, cls: type[T]) -> T:
    """Read one YAML file into the dataclass `cls`.

    Lists become tuples where the field is a tuple, integers become floats where it is a float,
    text becomes an Enum member where it is an Enum. A ValueError from a `__post_init__` is
    reported as the file's fault.

    Raises ProfileError: unreadable file, broken YAML, duplicate, unknown or missing
    key, wrong type.
    """
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise ProfileError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
    return parse_strict(text, cls, source=str(path))


def parse_strict(text: str, cls: type[T], *, source: str) -> T:
    """As `load_strict`, from text; `source` is the name that errors mention."""
    return build_strict(parse_value(text, source=source), cls, source=source)


def parse_value(text: str, *, source: str) -> Any:
    """The plain value that YAML text stands for. Raises ProfileError as `load_strict` does."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ProfileError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ProfileError(f"{source}: nested too deeply") from None
    except (ValueError, LookupError, AttributeError) as error:
        # A date that is none, `!!bool maybe`, `!!int ''`: PyYAML's constructors raise what they do.
        raise ProfileError(f"{source}: not valid YAML: {error!r}") from error
    _check_count(data, source)
    return data


def build_strict(data: object, cls: type[T], *, source: str) -> T:
    """As `load_strict`, from data already parsed (a JSON object, a YAML section)."""
    try:
        built: T = _Builder(source).build(data, cls, "")
    except RecursionError:
        raise ProfileError(f"{source}: nested too deeply") from None
    return built


class _Builder:
    """Builds one dataclass from plain data, checking every value on the way.

    It counts what it visits: a few YAML aliases can stand for more values than memory holds.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._num_left = MAX_VALUES

    def build(self, data: object, type_: Any, path: str) -> Any:
        """The value of `type_` that `data` stands for. Raises ProfileError naming file and key."""
        self._num_left -= 1
        if self._num_left < 0:
            raise self._error(f"more than {MAX_VALUES} values")
        origin, args = get_origin(type_), get_args(type_)
        if type_ in (Any, object):
            return data
        if origin in (Union, types.UnionType):
            return self._union(data, args, path)
        if is_dataclass(type_):
            return self._dataclass(data, type_, path)
        if origin in (tuple, list):
            return self._sequence(data, origin, args, path)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return self._mapping(data, args, path)
        if type_ in (int, float):
            return self._number(data, type_, path)
        if origin is Literal:
            if not any(data == choice and type(data) is type(choice) for choice in args):
                allowed = ", ".join(map(repr, args))
                raise self._error(f"'{path}' must be one of {allowed}, not {_short(data)}")
            return data
        if isinstance(type_, type) and issubclass(type_, Enum):
            try:
                return type_(data)
            except ValueError as error:
                allowed = ", ".join(repr(member.value) for member in type_)
                raise self._error(f"'{path}': {error}; choose one of {allowed}") from error
        if not isinstance(data, type_):
            wanted = _NAMES.get(type_, type_.__name__)
            raise self._error(f"'{path}' must be {wanted}, not {_short(data)}")
        return data

    def _union(self, data: object, members: tuple[Any, ...], path: str) -> Any:
        """The first member that fits; the only one's own error where there is one member."""
        if data is None and type(None) in members:
            return None
        others = [member for member in members if member is not type(None)]
        if len(others) == 1:
            return self.build(data, others[0], path)
        for member in others:
            with contextlib.suppress(ProfileError):
                return self.build(data, member, path)
        wanted = " or ".join(_NAMES.get(member, str(member)) for member in others)
        raise self._error(f"'{path}' must be {wanted}, not {_short(data)}")

    def _sequence(self, data: object, origin: Any, args: tuple[Any, ...], path: str) -> Any:
        if not isinstance(data, list | tuple):
            raise self._error(f"'{path}' must be a list, not {_short(data)}")
        one_type = origin is list or Ellipsis in args
        item_types = (args[0],) * len(data) if one_type else args
        if len(item_types) != len(data):
            raise self._error(f"'{path}' needs {len(item_types)} items, has {len(data)}")
        items = [
            self.build(item, item_type, f"{path}[{index}]")
            for index, (item, item_type) in enumerate(zip(data, item_types, strict=True))
        ]
        return tuple(items) if origin is tuple else items

    def _mapping(self, data: object, args: tuple[Any, ...], path: str) -> dict[Any, Any]:
        if not isinstance(data, Mapping):
            raise self._error(f"'{path}' must be a mapping, not {_short(data)}")
        return {
            self.build(key, args[0], _join(path, key)): self.build(value, args[1], _join(path, key))
            for key, value in data.items()
        }

    def _number(self, data: object, type_: Any, path: str) -> int | float:
        kind = "a number" if type_ is float else "an integer"
        if isinstance(data, bool) or not isinstance(data, int | float):
            raise self._error(f"'{path}' must be {kind}, not {_short(data)}")
        try:
            finite = math.isfinite(data)
        except OverflowError:  # an integer beyond float64
            finite = False
        if not finite:
            raise self._error(f"'{path}' must be finite, not {_short(data)}")
        if type_ is int and not isinstance(data, int):
            raise self._error(f"'{path}' must be {kind}, not {_short(data)}")
        return float(data) if type_ is float else data

    def _dataclass(self, data: object, cls: Any, path: str) -> Any:
        values = self._checked_keys(data, cls, path)
        hints = get_type_hints(cls)
        built = {
            key: self.build(value, hints[key], _join(path, key)) for key, value in values.items()
        }
        try:
            return cls(**built)
        except ValueError as error:
            raise self._error(str(error)) from error

    def _checked_keys(self, data: object, cls: Any, path: str) -> Mapping[str, object]:
        where = f"'{path}'" if path else "the top level"
        allowed = [f.name for f in fields(cls) if f.init]
        if not isinstance(data, Mapping):
            raise self._error(
                f"{where} must be a mapping with keys {', '.join(allowed)}, "
                f"not {type(data).__name__}"
            )
        required = {
            f.name for f in fields(cls) if f.init and f.default is f.default_factory is MISSING
        }
        for what, keys in (
            ("unknown", [key for key in data if key not in allowed]),
            ("missing", [key for key in allowed if key in required and key not in data]),
        ):
            if keys:
                raise self._error(
                    f"{what} key{'s' * (len(keys) > 1)} "
                    f"{', '.join(_short(_join(path, key)) for key in keys[:10])}; "
                    f"allowed here: {', '.join(allowed)}"
                )
        return data

    def _error(self, what: str) -> ProfileError:
        return ProfileError(f"{self._source}: {what}")


def _check_count(data: object, source: str) -> None:
    """ProfileError where aliases stand for more values than MAX_VALUES, or for themselves."""
    num_left, waiting = MAX_VALUES, [data]
    while waiting:
        value = waiting.pop()
        children = [*value.values()] if isinstance(value, Mapping) else value
        if isinstance(children, list | tuple):
            num_left -= len(children)
            if num_left < 0:
                raise ProfileError(f"{source}: more than {MAX_VALUES} values")
            waiting.extend(children)


def _short(value: object) -> str:
    """A value as an error shows it: one line, never long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a loop
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads `1e9` as a number."""

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        """One text. Refuses half of a surrogate pair, which no UTF-8 text can hold."""
        value = str(super().construct_scalar(node))
        try:
            value.encode()
        except UnicodeEncodeError:
            raise yaml.constructor.ConstructorError(
                None, None, "half of a surrogate pair", node.start_mark
            ) from None
        return value

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """One integer. Refuses long ones: `1:1:1:...` in base 60 takes hours."""
        if len(self.construct_scalar(node)) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"an integer of more than {MAX_DIGITS} digits", node.start_mark
            )
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """One number. Refuses long ones, as for integers."""
        if len(self.construct_scalar(node)) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of more than {MAX_DIGITS} digits", node.start_mark
            )
        return float(super().construct_yaml_float(node))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build one mapping; a key written twice is an error, not the last one winning."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text or a number", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_yaml_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_yaml_float)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
