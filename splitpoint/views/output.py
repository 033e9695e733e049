"""What a command prints on stdout for programs: exactly one JSON object."""

from __future__ import annotations

import json
from typing import Any

import typer


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print `value` as one JSON document and nothing else."""
    typer.echo(json.dumps(value, indent=indent))
