"""Who holds a token and what they may use: the token file, and a bucket that meters rows.

Each line of the file is a tenant; blank lines and lines that begin with `#` are left out:

    TOKEN [name=NAME] [sessions=N] [tokens_per_s=R] [pull_bytes_per_s=R] [share_prefixes=yes|no]

A line with a token alone is a tenant without limits, named after a hash of its token. Lines with
the same name are one tenant with several tokens. It shares its limits among them, so every line
must give the same ones. A token belongs to one line. No message repeats a word of the file that
could be a token. Nothing here reads a clock: the caller passes times in.
"""

from __future__ import annotations

import codecs
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cloud.errors import StartError

_SCHEME: Final = b"bearer "
_OPTIONS: Final = ("name", "sessions", "tokens_per_s", "pull_bytes_per_s", "share_prefixes")
_YES_OR_NO: Final = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One customer of the server. None: no limit.

    sessions: most at once; and most pulls at once. tokens_per_s: rows of hidden state per second.
    pull_bytes_per_s: bytes of files a second for its devices, all together. share_prefixes:
    whether its devices may share the beginnings of prompts with each other, where a device asks
    for that.
    """

    name: str
    sessions: int | None = None
    tokens_per_s: float | None = None
    pull_bytes_per_s: float | None = None
    share_prefixes: bool = True


ANONYMOUS: Final = Tenant(name="anonymous")


class Tenants:
    """Tokens and who holds them. Without any token everybody is ANONYMOUS."""

    def __init__(self, by_token: Sequence[tuple[bytes, Tenant]] = ()) -> None:
        self._by_token = tuple(by_token)

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def holders(self) -> tuple[Tenant, ...]:
        """Every tenant once, in the order of the token file."""
        return tuple(dict.fromkeys(tenant for _, tenant in self._by_token))

    @classmethod
    def parse(cls, text: bytes, source: str) -> Tenants:
        """Read the content of a token file. A StartError names `source` and the line."""
        found: list[tuple[bytes, Tenant]] = []
        by_name: dict[str, Tenant] = {}
        line_of: dict[bytes, int] = {}
        for number, line in enumerate(text.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith(b"#"):
                continue
            tenant = _tenant(words[0], words[1:], f"{source}, line {number}")
            if by_name.setdefault(tenant.name, tenant) != tenant:
                raise StartError(f"{source}, line {number}: {tenant.name} has other limits above")
            first = line_of.setdefault(words[0], number)
            if first != number:
                raise StartError(
                    f"{source}, line {number}: its token is on line {first} too; "
                    "give each line a token of its own"
                )
            found.append((words[0], tenant))
        if not found:
            raise StartError(f"{source}: no token in it")
        return cls(found)

    @staticmethod
    def holds(text: bytes, token: str) -> bool:
        """Whether a token file of this content has a line of that token."""
        lines = (line.split() for line in text.removeprefix(codecs.BOM_UTF8).splitlines())
        return any(words[:1] == [token.encode()] for words in lines)

    def of(self, header: str | bytes | None) -> Tenant | None:
        """The holder of the token in an `authorization` header; None: refuse.

        It compares every token in constant time, so that the duration tells nothing about them.
        """
        if not self._by_token:
            return ANONYMOUS
        value = header.encode() if isinstance(header, str) else header or b""
        scheme, token = value[: len(_SCHEME)], value[len(_SCHEME) :]
        matches = [t for known, t in self._by_token if hmac.compare_digest(token, known)]
        return matches[0] if matches and scheme.lower() == _SCHEME else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A token bucket: it gains `rate` per second and saves up `burst` at most. A value.

    level: what is in it at time `at_s`, seconds.
    """

    rate: float
    burst: float
    level: float
    at_s: float

    @classmethod
    def full(cls, rate: float, *, at_s: float) -> Bucket:
        """A bucket with one second's worth (at least one) saved up."""
        burst = max(rate, 1.0)
        return cls(rate=rate, burst=burst, level=burst, at_s=at_s)

    def at_rate(self, rate: float, *, at_s: float) -> Bucket:
        """The bucket with another rate from now on; what is in it stays, as far as it may."""
        known, _ = self.take(0, at_s=at_s)
        full = Bucket.full(rate, at_s=at_s)
        return replace(full, level=min(known.level, full.burst))

    def take(self, count: int, *, at_s: float) -> tuple[Bucket, float]:
        """Take `count` now: the bucket after it, and how many seconds to wait.

        The level may go below zero, and the wait lasts until it is zero again. So a frame larger
        than the burst passes in the end, and the frames behind it wait longer.
        """
        level = min(self.burst, self.level + (at_s - self.at_s) * self.rate) - count
        return replace(self, level=level, at_s=at_s), max(0.0, -level / self.rate)


class RateLimits:
    """The buckets of all tenants that have a rate: no more than the token file has lines."""

    def __init__(self) -> None:
        self._buckets: dict[str, Bucket] = {}

    def wait_s(self, tenant: Tenant, num_rows: int, *, at_s: float) -> float:
        """How long a frame of `num_rows` rows has to wait for its tenant's rate, in seconds."""
        if tenant.tokens_per_s is None:
            return 0.0
        bucket = self._buckets.get(tenant.name) or Bucket.full(tenant.tokens_per_s, at_s=at_s)
        self._buckets[tenant.name], wait_s = bucket.take(num_rows, at_s=at_s)
        return wait_s


def _tenant(token: bytes, options: Sequence[bytes], where: str) -> Tenant:
    values: dict[str, str] = {}
    for number, option in enumerate(options, 2):
        key, equals, value = option.decode(errors="replace").partition("=")
        if not equals or key not in _OPTIONS:  # it may be a token: do not print it
            raise StartError(
                f"{where}: word {number} is no option; allowed are "
                + ", ".join(f"{name}=" for name in _OPTIONS)
            )
        if key in values:
            raise StartError(f"{where}: {key}= is there twice")
        values[key] = value
    name = values.get("name") or "tenant-" + hashlib.sha256(token).hexdigest()[:8]
    try:
        sessions = int(values["sessions"]) if "sessions" in values else None
        rate = float(values["tokens_per_s"]) if "tokens_per_s" in values else None
        pull_bytes_per_s = (
            float(values["pull_bytes_per_s"]) if "pull_bytes_per_s" in values else None
        )
    except ValueError:
        raise StartError(f"{where}: limits are numbers") from None
    rates = [one for one in (rate, pull_bytes_per_s) if one is not None]
    if (sessions is not None and sessions < 1) or not all(0 < one < 1e12 for one in rates):
        raise StartError(f"{where}: limits are above zero")
    shares = _YES_OR_NO.get(values.get("share_prefixes", "yes"))
    if shares is None:
        raise StartError(f"{where}: share_prefixes= is yes or no")
    return Tenant(
        name=name,
        sessions=sessions,
        tokens_per_s=rate,
        pull_bytes_per_s=pull_bytes_per_s,
        share_prefixes=shares,
    )
