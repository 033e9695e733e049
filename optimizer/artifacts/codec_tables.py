"""The codec tables of a bundle: those of its build, and further ones by name.

    codec/split-N.tables             of the build, named "default"
    codec/split-N.quality.json       what each of their levels costs: a certificate
    codec/text.json                  the text that they were fitted to, where they were refitted
    codec/NAME/...                   the same files of the tables `splitpoint calibrate --name NAME`
                                     has added

Both sides hold the same files, pinned by the manifest. A session uses the tables of one name.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from optimizer.artifacts.manifest import shown
from optimizer.errors import BundleError

DEFAULT_TABLES: Final = "default"
AUTO_TABLES: Final = "auto"  # no name: the device chooses for each prompt
MAX_NAMED_TABLES: Final = 16
_MOST_CHARS: Final = 32
_NAME: Final = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_MOST_CHARS - 1}}}")
_TABLES: Final = re.compile(r"codec/(?:([^/]*)/)?split-(0|[1-9][0-9]{0,5})\.tables")


def tables_name(split: int, name: str = DEFAULT_TABLES) -> str:
    """The file in a bundle of a split's codec tables."""
    return f"{tables_folder(name)}/split-{split}.tables"


def quality_name(split: int, name: str = DEFAULT_TABLES) -> str:
    """The file in a bundle of those tables' certificate."""
    return f"{tables_folder(name)}/split-{split}.quality.json"


def text_name(name: str = DEFAULT_TABLES) -> str:
    """The file in a bundle that says to what text those tables were fitted."""
    return f"{tables_folder(name)}/text.json"


def tables_folder(name: str) -> str:
    """The folder in a bundle of the tables of that name."""
    return "codec" if name == DEFAULT_TABLES else f"codec/{name}"


def checked_tables_name(name: str) -> str:
    """`name` where tables may have it. Raises BundleError: it is a folder's name on any system."""
    if name == AUTO_TABLES or not _NAME.fullmatch(name):
        raise BundleError(
            f"tables cannot be named {shown(name)}: up to {_MOST_CHARS} of a-z, 0-9, - and _, a "
            f"letter or digit first, and not {AUTO_TABLES}"
        )
    return name


def listed_tables(files: Collection[str]) -> dict[str, dict[int, str]]:
    """The tables among a bundle's files: by name, then by split, the file. The default ones first,
    the others sorted.

    Raises BundleError for a name that tables cannot have, and for more than MAX_NAMED_TABLES.
    """
    found: dict[str, dict[int, str]] = {DEFAULT_TABLES: {}}
    for file in sorted(files):
        match = _TABLES.fullmatch(file)
        if match is None:
            continue
        folder, split = match.groups()
        if folder == DEFAULT_TABLES:
            raise BundleError(f"{shown(file)}: the default tables lie in codec/ itself")
        name = DEFAULT_TABLES if folder is None else checked_tables_name(folder)
        found.setdefault(name, {})[int(split)] = file
    check_count(found)
    return found


def check_count(names: Collection[str]) -> None:
    """BundleError for more names than a bundle may have."""
    if len(set(names) | {DEFAULT_TABLES}) > MAX_NAMED_TABLES + 1:
        raise BundleError(
            f"{len(set(names) - {DEFAULT_TABLES})} named tables: a bundle may have "
            f"{MAX_NAMED_TABLES} (replace one, --replace)"
        )


def check_splits(name: str, there: Collection[int], splits: Collection[int]) -> None:
    """BundleError where named tables lack one of the plan's `splits`."""
    missing = sorted(set(splits) - set(there))
    if missing and name != DEFAULT_TABLES:
        raise BundleError(
            f"the tables {name} lack split {missing[0]} (calibrate them again, --replace)"
        )
