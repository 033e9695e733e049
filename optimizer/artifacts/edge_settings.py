"""`edge/edge.json`: what the device must know of the model besides plan and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from hwprofiles.schema.strict_yaml import build_strict
from optimizer.errors import BundleError

EDGE_SETTINGS_NAME: Final = "edge.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Tokens that the device treats in a special way.

    stop_token_ids: each ends an answer. bos_token, eos_token, special_tokens: what a chat template
    may insert. `special_tokens` has the other ones by the name that templates use (`pad_token`,
    `unk_token`, ...); bundles of earlier versions have none.
    """

    stop_token_ids: tuple[int, ...]
    bos_token: str | None = None
    eos_token: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def save(self, edge_dir: Path) -> None:
        """Write `edge.json` into the folder."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (edge_dir / EDGE_SETTINGS_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, edge_dir: Path) -> EdgeSettings:
        """Read `edge.json` of the folder. Raises BundleError naming the file."""
        path = edge_dir / EDGE_SETTINGS_NAME
        try:
            return build_strict(read_json(path), cls, source=str(path))
        except ProfileError as error:
            raise BundleError(f"not readable edge settings: {error}") from error
