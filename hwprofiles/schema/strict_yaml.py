"""Strict YAML: a file becomes a dataclass, and any key that does not belong is an error.

Every YAML file of this project (device and link profiles, plans, scenarios) is read here, so that
all of them fail alike: one line with the file, the path of the key, and the keys allowed there.

Stricter than plain PyYAML + dacite in four ways, each because the lenient reading has hidden a
mistake in somebody's configuration: duplicate keys are refused; `1e9` is a number (YAML 1.1 reads
it as text); true/false are not numbers; NaN and infinity are refused.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Hashable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import dacite
import yaml

from hwprofiles.errors import ProfileError

T = TypeVar("T")


def load_strict(path: str | Path, cls: type[T]) -> T:
    """Read one YAML file into the dataclass `cls`.

    Lists become tuples where the field is a tuple, integers become floats where it is a float,
    text becomes an Enum member where it is an Enum. A ValueError from a `__post_init__` is
    reported as the file's fault.

    Raises ProfileError: unreadable file, broken YAML, duplicate, unknown or missing
    key, wrong type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: cannot be read: {error}") from error
    return parse_strict(text, cls, source=str(path))


def parse_strict(text: str, cls: type[T], *, source: str) -> T:
    """As `load_strict`, from text; `source` is the name that errors mention."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ProfileError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    return build_strict(data, cls, source=source)


def build_strict(data: object, cls: type[T], *, source: str) -> T:
    """As `load_strict`, from data already parsed (a JSON object, a YAML section)."""
    prepared = _prepare(data, cls, source=source, path="")
    try:
        return dacite.from_dict(cls, prepared, dacite.Config(strict=True, cast=[Enum]))
    except (dacite.DaciteError, ValueError) as error:
        raise ProfileError(f"{source}: {error}") from error


def _prepare(data: object, type_: Any, *, source: str, path: str) -> Any:
    """Check keys against `type_` all the way down, and convert what YAML cannot express."""
    origin, args = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        members = [a for a in args if a is not type(None)]
        if data is None or len(members) != 1:  # several members: dacite picks the one that fits
            return data
        return _prepare(data, members[0], source=source, path=path)
    if is_dataclass(type_):
        return _prepare_dataclass(data, type_, source=source, path=path)
    if isinstance(data, list) and origin in (tuple, list):
        item_types = args if origin is tuple and Ellipsis not in args else (args[0],) * len(data)
        if len(item_types) != len(data):
            raise ProfileError(f"{source}: '{path}' needs {len(item_types)} items, has {len(data)}")
        items = [
            _prepare(item, item_type, source=source, path=f"{path}[{i}]")
            for i, (item, item_type) in enumerate(zip(data, item_types, strict=True))
        ]
        return tuple(items) if origin is tuple else items
    if isinstance(data, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        return {
            key: _prepare(value, args[1], source=source, path=_join(path, key))
            for key, value in data.items()
        }
    if type_ in (int, float):
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            kind = "a number" if type_ is float else "an integer"
            raise ProfileError(f"{source}: '{path}' must be {kind}, not {data!r}")
        if not math.isfinite(data):
            raise ProfileError(f"{source}: '{path}' must be finite, not {data!r}")
        return float(data) if type_ is float else data
    return data


def _prepare_dataclass(data: object, cls: Any, *, source: str, path: str) -> dict[str, Any]:
    where = f"'{path}'" if path else "the top level"
    allowed = [f.name for f in fields(cls) if f.init]
    if not isinstance(data, Mapping):
        raise ProfileError(
            f"{source}: {where} must be a mapping with keys {', '.join(allowed)}, "
            f"not {type(data).__name__}"
        )
    unknown = [key for key in data if key not in allowed]
    if unknown:
        raise ProfileError(
            f"{source}: unknown key{'s' * (len(unknown) > 1)} "
            f"{', '.join(repr(_join(path, key)) for key in unknown)}; "
            f"allowed here: {', '.join(allowed)}"
        )
    required = {f.name for f in fields(cls) if f.init and f.default is f.default_factory is MISSING}
    missing = [key for key in allowed if key in required and key not in data]
    if missing:
        raise ProfileError(
            f"{source}: missing key{'s' * (len(missing) > 1)} "
            f"{', '.join(repr(_join(path, key)) for key in missing)}; "
            f"allowed here: {', '.join(allowed)}"
        )
    hints = get_type_hints(cls)
    return {
        key: _prepare(value, hints[key], source=source, path=_join(path, key))
        for key, value in data.items()
    }


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads `1e9` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build one mapping; a key written twice is an error, not the last one winning."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
