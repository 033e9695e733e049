"""The frames of this device's last prompts: a prompt that begins the same is not sent again.

A chat sends its whole history with every turn, and a system prompt with every request. This
module keeps the frames of those prompts as they were encoded. A new session names them by hash,
and those that the cloud still holds need not travel (`protos.prefix`). They join the new session's
journal all the same: if the cloud is lost, they are replayed like any other frame.

The names begin with a secret of this device, so that no other device, not even one with the same
token, can find out what was sent here. The secret lives as long as these frames: in memory.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from protos.messages import Frame

MAX_BYTES: Final = 16 << 20
MIN_LEFT: Final = 2
SALT_BYTES: Final = 32


class PrefixMemory:
    """Prompt frames by compression level; at most `max_bytes`. Safe from several threads.

    share: name them so that the other devices of this tenant can find them too, and theirs can be
    found here. salt: what the names begin with (`Open.prefix_salt`); empty: nothing.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, *, share: bool = False) -> None:
        self.salt = b"" if share else secrets.token_bytes(SALT_BYTES)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._prompts: OrderedDict[tuple[str, tuple[Frame, ...]], int] = OrderedDict()

    def matching(self, level: str, prompt_ids: Sequence[int]) -> tuple[Frame, ...]:
        """The most known frames that `prompt_ids` begins with; at least two tokens are left.

        A single row may come out different from the same row among others
        (`optimizer.policy.prefill_chunks`).
        """
        with self._lock:
            kept = [frames for known, frames in self._prompts if known == level]
        return max((_common(frames, prompt_ids) for frames in kept), key=len, default=())

    def worth_naming(
        self, level: str, prompt_ids: Sequence[int], *, wants_ids: bool
    ) -> tuple[Frame, ...]:
        """The frames of `matching`. wants_ids: only where they are most of the prompt.

        Behind a beginning that is held, the rest of a prompt has to go as rows, not as ids.
        """
        known = self.matching(level, prompt_ids)
        covered = sum(len(frame.token_ids) for frame in known)
        return known if not wants_ids or 2 * covered >= len(prompt_ids) else ()

    def remember(self, level: str, journal: Sequence[Frame]) -> None:
        """Keep the frames of a prompt: those before the first one that asked for a token."""
        frames: list[Frame] = []
        for frame in journal:
            if frame.want_token or frame.ahead:
                break
            frames.append(frame)
        if not frames:
            return
        key = (level, tuple(frames))
        with self._lock:
            self._prompts.pop(key, None)
            self._prompts[key] = sum(len(frame.hidden) for frame in frames)
            while sum(self._prompts.values()) > self.max_bytes:
                self._prompts.popitem(last=False)


def _common(frames: Sequence[Frame], prompt_ids: Sequence[int]) -> tuple[Frame, ...]:
    count = 0
    for frame in frames:
        end = frame.first_position + len(frame.token_ids)
        if end > len(prompt_ids) - MIN_LEFT:
            break
        if tuple(prompt_ids[frame.first_position : end]) != frame.token_ids:
            break
        count += 1
    return tuple(frames[:count])
