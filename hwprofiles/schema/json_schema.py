"""JSON Schema of a profile dataclass, so that editors complete and check the YAML files.

`splitpoint profile schema device` prints it. In an editor with a YAML language server, put
`# yaml-language-server: $schema=device.schema.json` on a profile's first line.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PRIMITIVES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema(cls: type) -> dict[str, Any]:
    """The schema of dataclass `cls`: unknown keys refused, nested classes under `$defs`.

    Raises TypeError for a field type that no profile uses (our own mistake, not the user's).
    """
    definitions: dict[str, Any] = {}
    _schema_of(cls, definitions)
    top = definitions.pop(cls.__name__)
    return {"$schema": DIALECT, "title": cls.__name__, **top, "$defs": definitions}


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # placeholder: stops recursion on itself
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if kind in _PRIMITIVES:
        return {"type": _PRIMITIVES[kind]}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        options = [part for part in arguments if part is not type(None)]
        schemas = [_schema_of(part, definitions) for part in options]
        if len(options) < len(arguments):
            schemas.append({"type": "null"})
        return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    if origin in (tuple, list):
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is dict:
        return {
            "type": "object",
            "additionalProperties": _schema_of(arguments[1], definitions),
        }
    raise TypeError(f"no JSON Schema for {kind!r}")


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    members = fields(kind)
    required = [
        item.name for item in members if item.default is MISSING and item.default_factory is MISSING
    ]
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "additionalProperties": False,
        "required": required,
        "properties": {item.name: _schema_of(hints[item.name], definitions) for item in members},
    }
