"""How many of a prompt's first tokens a simulated device sends as ids.

The edge's own policy decides (`optimizer.policy.prefill_place`), from what the cost models say that
each stage takes: what a device has learned after some prompts. Prompts before that are not told
apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from optimizer.cost.prompt import prompt_ids
from optimizer.simulate.request_settings import RequestSettings
from optimizer.simulate.workload import ClientSpec

NumIds = Callable[[int, int], int]  # of a prompt's length and its split


class PromptIds:
    """One count for all clients with the same group, device and link."""

    def __init__(self, settings: RequestSettings) -> None:
        self._settings = settings
        self._known: dict[tuple[int, str, str], NumIds] = {}

    def of(self, spec: ClientSpec) -> NumIds:
        """Tokens of a client's prompts that go as ids."""
        key = (spec.group, spec.device, spec.link)
        if key not in self._known:
            self._known[key] = self._count(spec)
        return self._known[key]

    def _count(self, spec: ClientSpec) -> NumIds:
        at = self._settings.of(spec)

        def counted(num_tokens: int, split: int) -> int:
            return prompt_ids(at(split), num_tokens=num_tokens)

        return cache(counted)
