"""The small JSON files of a checkpoint: bounded, and refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.errors import ModelError
from optimizer.export.sources.weight_file import check_file

_MAX_CONFIG_BYTES: Final = 1 << 20
# What transformers reads for a tokenizer.
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)


def read_object(path: Path, *, max_bytes: int = _MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ModelError naming the file and the reason."""
    check_file(path)
    try:
        value = read_json(path, max_bytes=max_bytes)
    except ProfileError as error:
        raise ModelError(f"{error}; fetch the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: must hold an object ({{...}}); fetch the model again")
    return value


def configured_stops(folder: Path) -> tuple[int, ...]:
    """The ids in `generation_config.json` that end an answer; () where there is no such file.

    Raises ModelError for anything but an id, a list of ids, or null.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return ()
    return stop_ids(read_object(path).get("eos_token_id"), f"{path}: eos_token_id")


def stop_ids(value: object, what: str) -> tuple[int, ...]:
    """A configured id, list of ids, or None, as ids. Raises ModelError, naming `what`."""
    if value is None:
        return ()
    ids = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if any(type(token) is not int or token < 0 for token in ids):
        raise ModelError(f"{what} must be a token id or a list of them, not {value!r:.80}")
    return ids


def check_tokenizer_files(folder: Path) -> None:
    """Raises ModelError for a tokenizer's file that is no readable JSON object.

    They are large, and some hold numbers beyond int64, so only their syntax is checked.
    """
    for name in _TOKENIZER_FILES:
        path = folder / name
        if not path.exists():
            continue
        check_file(path)
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path}: not valid JSON ({error}); fetch the model again") from error
        if not isinstance(value, dict):
            raise ModelError(f"{path}: must hold an object ({{...}}); fetch the model again")
