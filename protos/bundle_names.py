"""How somebody names one of a server's bundles: by a name, or by the beginning of a hash.

Both sides use the same rule. The server finds the bundle, and the device checks what it gets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from protos.messages import ServedBundle

# Digits of a hash that name something, and that messages show.
SHORT_HASH_CHARS: Final = 8
# Bundles that one line lists; it has to fit into a gRPC status.
MOST_LISTED: Final = 4
_HASH: Final = re.compile(r"[0-9a-f]{8,64}")


def is_named(wanted: str, bundle: ServedBundle) -> bool:
    """Whether `wanted` names the bundle: its folder, its manifest, its model or the model's hash.

    A hash may be cut to its first 8 or more hexadecimal digits.
    """
    if wanted in (bundle.name, bundle.model_id):
        return True
    is_hash = _HASH.fullmatch(wanted) is not None
    hashes = (bundle.manifest_sha256, bundle.model_sha256)
    return is_hash and any(one.startswith(wanted) for one in hashes)


def bundles_line(bundles: Iterable[ServedBundle]) -> str:
    """Bundles for people, on one line: each by its name, model, split and manifest's hash."""
    every = tuple(bundles)
    shown = [
        f"{one.name[:40]} (model {one.model_id[:40]}, split {one.split}, "
        f"{one.manifest_sha256[:SHORT_HASH_CHARS]})"
        for one in every[:MOST_LISTED]
    ]
    more = len(every) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
