"""Where the device keeps what it can get or make again, by XDG Base Directory Specification 0.8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str]) -> Path | None:
    """$XDG_CACHE_HOME/splitpoint, else ~/.cache/splitpoint; None where neither is named."""
    for variable, below in (("XDG_CACHE_HOME", ""), ("HOME", ".cache")):
        base = environment.get(variable, "")
        if base and Path(base).is_absolute():  # a relative one is to be ignored, says XDG
            return Path(base) / below / "splitpoint"
    return None
