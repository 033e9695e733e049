"""A second model on the device: a bundle that lies wholly on the edge, of the same tokenizer.

It drafts for the first one, or answers when no server does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edge.device.front import FrontEngine
from edge.device.front_loading import load_bundle_front
from edge.errors import InputError
from hwprofiles.providers.table import CPU
from optimizer.artifacts.bundle import Bundle, open_bundle

TOKENIZER: Final = "edge/tokenizer.json"


class WholeModel:
    """See the module's docstring. Opened once; each user gets an `engine` of its own.

    root: its folder. like: the bundle whose tokenizer it has to have. what: it, in messages.
    provider: what runs it. memory_limit_bytes: of this process, see `load_front`. Raises InputError
    when the model does not lie wholly on the edge or has another tokenizer.
    """

    def __init__(
        self,
        root: Path,
        *,
        like: Bundle,
        what: str,
        threads: int | None = None,
        provider: str = CPU.name,
        memory_limit_bytes: int | None = None,
    ) -> None:
        bundle = open_bundle(root, role="edge")
        if not bundle.plan.edge_is_whole:
            raise InputError(f"{root}: {what} must lie wholly on the edge")
        for opened in (bundle, like):
            opened.path(TOKENIZER)  # which must be listed
        if bundle.files[TOKENIZER].sha256 != like.files[TOKENIZER].sha256:
            raise InputError(f"{root}: its tokenizer is another one than {like.root}'s")
        self.plan = bundle.plan
        self.tokenizer_path = bundle.path(TOKENIZER)
        loaded = load_bundle_front(
            bundle,
            provider=provider,
            threads=threads,
            memory_limit_bytes=memory_limit_bytes,
        )
        (self._engine,) = loaded.engines

    def engine(self) -> FrontEngine:
        """An engine with an empty cache of its own."""
        return self._engine.sibling()
