"""When to stop, seen from the text: stop tokens, stop strings, the length asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Literal

FinishReason = Literal["stop", "length", "deadline", "server_lost", "cancelled"]
FINISH_REASONS: Final[tuple[FinishReason, ...]] = (
    "stop",
    "length",
    "deadline",
    "server_lost",
    "cancelled",
)


class StopRule:
    """Watches one generation's tokens and text and says when it is over.

    Text that might begin a stop string is held back until this is clear. So the text that `push`
    has returned never contains a stop string, and never ends with a part of one.
    """

    def __init__(
        self, *, stop_token_ids: Collection[int], stop_strings: Sequence[str], max_new_tokens: int
    ) -> None:
        self._stop_token_ids = frozenset(stop_token_ids)
        self._stop_strings = tuple(stop_strings)
        self._max_new_tokens = max_new_tokens
        self._num_tokens = 0
        self._held = ""
        self.reason: FinishReason | None = None

    def is_stop_token(self, token_id: int) -> bool:
        """Whether the model ends its answer with this token."""
        return token_id in self._stop_token_ids

    def is_last(self, token_id: int) -> bool:
        """Whether the answer ends with this next token, whatever its text is."""
        return self.is_stop_token(token_id) or self._num_tokens + 1 >= self._max_new_tokens

    def push(self, token_id: int, text: str) -> str:
        """Take one token and the text it completed; returns the text that may be shown.

        Sets `reason` when this token ends the generation. Must not be called afterwards.
        """
        is_stop_token = self.is_stop_token(token_id)
        self._num_tokens += 1
        self._held += text
        cut = min(
            (at for stop in self._stop_strings if (at := self._held.find(stop)) >= 0), default=-1
        )
        if cut >= 0:
            self.reason = "stop"
            shown, self._held = self._held[:cut], ""
            return shown
        if is_stop_token:
            self.reason = "stop"
            return self.flush()
        if self._num_tokens >= self._max_new_tokens:
            self.reason = "length"
            return self.flush()
        keep = max((_overlap(self._held, stop) for stop in self._stop_strings), default=0)
        shown, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return shown

    def flush(self) -> str:
        """What was held back, when the generation ends for another reason."""
        shown, self._held = self._held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next(
        (
            length
            for length in range(min(len(text), len(stop) - 1), 0, -1)
            if text.endswith(stop[:length])
        ),
        0,
    )
