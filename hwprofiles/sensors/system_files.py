"""Numbers from system files. A file is hostile until checked: what is no plausible number is None.

Drivers report "no sensor" as 0, as the largest integer, as text, or as an error while reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hwprofiles.cgroups import text_of

SYSTEM_ROOT: Final = Path("/")
MOST_DIGITS: Final = 18
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")


def whole_number(path: Path, *, low: int, high: int) -> int | None:
    """The file's whole number within [low, high]; None where it holds anything else."""
    text = text_of(path)
    if text is None or not _WHOLE.fullmatch(text):
        return None
    number = int(text)
    return number if low <= number <= high else None


def folders_in(folder: Path, pattern: str) -> Iterator[Path]:
    """What matches in a folder, in the order of the numbers in its names; nothing where there is
    no such folder, or it may not be read."""
    try:
        found = list(folder.glob(pattern))
    except OSError:
        return
    yield from sorted(found, key=_by_numbers)


def _by_numbers(path: Path) -> tuple[list[int], str]:
    return [int(part[:MOST_DIGITS]) for part in re.findall(r"[0-9]+", path.name)], path.name
