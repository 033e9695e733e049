"""A conversation: its messages, and whether the last question waits for an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.device.tokenizer import ChatMessage


@dataclass(slots=True, kw_only=True)
class Conversation:
    """The messages so far. `is_open`: the last question can be asked again."""

    messages: list[ChatMessage] = field(default_factory=list)
    is_open: bool = False

    @property
    def system(self) -> str:
        """The system message; empty where there is none."""
        first = self.messages[0] if self.messages else None
        return first["content"] if first is not None and first["role"] == "system" else ""

    @property
    def num_questions(self) -> int:
        """How many questions are in it."""
        return sum(message["role"] == "user" for message in self.messages)

    def set_system(self, text: str) -> None:
        """Let `text` be the system message, in place of any other; an empty one is none."""
        if self.system:
            del self.messages[0]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Forget everything but the system message."""
        system = self.system
        self.messages.clear()
        self.set_system(system)
        self.is_open = False

    def ask(self, question: str) -> None:
        """Add a question. It takes the place of one that got no answer at all."""
        self._drop_last("user")
        self.messages.append({"role": "user", "content": question})

    def ask_again(self) -> bool:
        """Make the last question the end of the conversation; False when it has its answer."""
        if self.is_open:
            self._drop_last("assistant")
        return self.is_open

    def answered(self, text: str, *, is_open: bool) -> None:
        """Add an answer, which may be a part of one. An open one without text adds nothing."""
        if text or not is_open:
            self.messages.append({"role": "assistant", "content": text})
        self.is_open = is_open

    def withdraw(self) -> None:
        """Forget the last question: it cannot be asked."""
        self._drop_last("user")
        self.is_open = False

    def _drop_last(self, role: str) -> None:
        if self.messages and self.messages[-1]["role"] == role:
            self.messages.pop()
