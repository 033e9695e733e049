"""Strict JSON: a file of data as Python values, with size, depth and numbers bounded.

Every JSON file that comes from outside is read here: the manifest and the settings of a bundle,
certificates, sensitivities, the facts of a draft head, a model's config. `codec.tables` reads the
header of its own format, because the codec imports no other room.

It is stricter than Python's `json`. A key that is written twice, NaN, infinity, a number that
float64 or int64 cannot hold, half of a surrogate pair and deep nesting are errors.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_yaml import MAX_BYTES

MAX_DEPTH: Final = 64
_MAX_INTEGER: Final = (1 << 63) - 1
_MAX_DIGITS: Final = 20  # of an integer within int64, with its sign
# A whole text first, so that brackets inside it do not count.
_STRUCTURE: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value that a JSON file (UTF-8) holds. Raises ProfileError naming file and reason."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise ProfileError(f"{path}: larger than {max_bytes >> 10} KiB")
    return parse_json(data, source=str(path))


def parse_json(data: bytes, *, source: str) -> Any:
    """As `read_json`, from bytes; `source` is the name that errors mention."""
    try:
        text = data.decode("utf-8-sig")
        _check_depth(text)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_no_constant,
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ProfileError(f"{source}: not valid JSON: half of a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{source}: not valid JSON: {' '.join(str(error).split())}") from error
    return value


def _check_depth(text: str) -> None:
    """ValueError for nesting beyond MAX_DEPTH, before any recursion."""
    depth = 0
    for found in _STRUCTURE.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        elif found[0] in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return values


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or abs(int(digits)) > _MAX_INTEGER:
        raise ValueError(f"the integer {digits[:20]}... has more than 63 bits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
