"""What the control group of this process allows: files of ours and of every group above it.

Linux, v2 and v1 (kernel documentation, admin-guide/cgroup-v2.rst and cgroup-v1/). Elsewhere there
are no such files, and so no limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")


def group_folders(
    controller: str, root: Path = CGROUP_ROOT, membership: str | None = None
) -> Iterator[tuple[Path, bool]]:
    """The folders of our groups for `controller`, ours first, then its parents; and whether v2.

    membership: the text of /proc/self/cgroup (None: read it). A container may see its own group
    as the root of the tree, so folders that are named but not there are skipped.
    """
    if membership is None:
        try:
            membership = MEMBERSHIP.read_text(encoding="utf-8")
        except OSError:
            return
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, group = rest.partition(":")
        is_v2 = controllers == ""
        if not colon or not (is_v2 or controller in controllers.split(",")):
            continue
        bases = [root] if is_v2 else [root / controllers, root / controller]
        for base in bases:
            folder = base / group.lstrip("/")
            for place in (folder, *folder.parents):
                if place != base and base not in place.parents:
                    break
                yield place, is_v2


def text_of(path: Path) -> str | None:
    """The words of a control file; None when it is not there or cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
