"""Every kind of drafter, in the order in which `auto` takes them and errors list them."""

from __future__ import annotations

from typing import Final

from edge.draft import cloud, head, model, ngram
from edge.draft.base import DrafterKind

AUTO: Final = "auto"
OFF: Final = "off"
KINDS: Final[tuple[DrafterKind, ...]] = (ngram.KIND, head.KIND, cloud.KIND, model.KIND)
NAMES: Final[tuple[str, ...]] = (AUTO, OFF, *(kind.name for kind in KINDS))
