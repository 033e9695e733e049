"""The tables file of a ladder: written by the build, read by both sides without torch."""

from pathlib import Path

from codec.errors import TablesError
from codec.ladder import Ladder


def load_ladder(path: Path, *, hidden_size: int) -> Ladder:
    """Read the ladder at `path`. Raises TablesError."""
    raise TablesError(f"{path}: no codec tables format yet")
