"""Whose token it is and what they may use: the token file, and a bucket that meters rows.

One tenant a line; blank lines and lines that begin with `#` are left out:

    TOKEN [name=NAME] [sessions=N] [tokens_per_s=R]

A line with a token alone (as in older files) is a tenant without limits, named after a hash of
its token. Several tokens may carry one name: they are one tenant and share its limits, which then
have to be the same. Nothing here reads a clock: times are passed in.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloud.errors import StartError

_SCHEME = b"bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """sessions: most at once; tokens_per_s: rows of hidden state; None: no limit."""

    name: str
    sessions: int | None = None
    tokens_per_s: float | None = None


ANONYMOUS = Tenant(name="anonymous")


class Tenants:
    """Tokens and who holds them. Without any token everybody is ANONYMOUS."""

    def __init__(self, by_token: Sequence[tuple[bytes, Tenant]] = ()) -> None:
        self._by_token = tuple(by_token)

    def __len__(self) -> int:
        return len(self._by_token)

    @classmethod
    def parse(cls, text: bytes, source: str) -> Tenants:
        """Read a token file's content. StartError names `source` and the line."""
        found: list[tuple[bytes, Tenant]] = []
        by_name: dict[str, Tenant] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith(b"#"):
                continue
            tenant = _tenant(words[0], words[1:], f"{source}, line {number}")
            if by_name.setdefault(tenant.name, tenant) != tenant:
                raise StartError(f"{source}, line {number}: {tenant.name} has other limits above")
            found.append((words[0], tenant))
        if not found:
            raise StartError(f"{source}: no token in it")
        return cls(found)

    def of(self, header: str | bytes | None) -> Tenant | None:
        """The holder of an `authorization` header; None: refuse.

        Every token is compared, in constant time: the duration tells nothing about them.
        """
        if not self._by_token:
            return ANONYMOUS
        value = header.encode() if isinstance(header, str) else header or b""
        scheme, token = value[: len(_SCHEME)], value[len(_SCHEME) :]
        matches = [t for known, t in self._by_token if hmac.compare_digest(token, known)]
        return matches[0] if matches and scheme.lower() == _SCHEME else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A token bucket: `rate` a second, at most `burst` saved up. A value; `take` gives the next."""

    rate: float
    burst: float
    level: float
    at_s: float

    @classmethod
    def full(cls, rate: float, *, at_s: float) -> Bucket:
        """One second's worth (at least one) saved up."""
        burst = max(rate, 1.0)
        return cls(rate=rate, burst=burst, level=burst, at_s=at_s)

    def take(self, count: int, *, at_s: float) -> tuple[Bucket, float]:
        """Take `count` now; the level may go below zero, and the wait is until it is zero again.

        So a frame larger than the burst is not stuck for ever: what follows it waits longer.
        """
        level = min(self.burst, self.level + (at_s - self.at_s) * self.rate) - count
        return replace(self, level=level, at_s=at_s), max(0.0, -level / self.rate)


def _tenant(token: bytes, options: Sequence[bytes], where: str) -> Tenant:
    values: dict[str, str] = {}
    for option in options:
        key, equals, value = option.decode(errors="replace").partition("=")
        if not equals or key not in ("name", "sessions", "tokens_per_s") or key in values:
            raise StartError(f"{where}: {key!r}; allowed are name=, sessions= and tokens_per_s=")
        values[key] = value
    name = values.get("name") or "tenant-" + hashlib.sha256(token).hexdigest()[:8]
    try:
        sessions = int(values["sessions"]) if "sessions" in values else None
        rate = float(values["tokens_per_s"]) if "tokens_per_s" in values else None
    except ValueError:
        raise StartError(f"{where}: limits are numbers") from None
    if (sessions is not None and sessions < 1) or (rate is not None and not 0 < rate < 1e12):
        raise StartError(f"{where}: limits are above zero")
    return Tenant(name=name, sessions=sessions, tokens_per_s=rate)
