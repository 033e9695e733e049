"""The KV policies, by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from optimizer.errors import PolicyError
from optimizer.policy.kv.base import KvPolicy
from optimizer.policy.kv.entropy import Entropy
from optimizer.policy.kv.handover import Handover
from optimizer.policy.kv.recent import Recent
from optimizer.policy.kv.refuse import Refuse
from optimizer.policy.kv.shift import Shift

_POLICIES: Final[tuple[KvPolicy, ...]] = (Refuse(), Shift(), Handover(), Recent(), Entropy())
KV_POLICIES: Final[Mapping[str, KvPolicy]] = MappingProxyType(
    {policy.name: policy for policy in _POLICIES}
)
# Further spellings: everything is kept, or the request refused.
OTHER_NAMES: Final[Mapping[str, str]] = MappingProxyType({"keep": "refuse"})


def kv_policy(name: str) -> KvPolicy:
    """The policy of this name; `keep` is another name of `refuse`. Raises PolicyError that lists
    the names."""
    name = OTHER_NAMES.get(name, name)
    if name not in KV_POLICIES:
        raise PolicyError(f"context {name!r}: choose one of {', '.join(KV_POLICIES)}")
    return KV_POLICIES[name]
