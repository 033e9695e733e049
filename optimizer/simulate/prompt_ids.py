"""How many of a prompt's first tokens a simulated device sends as ids.

The edge's own policy decides (`optimizer.policy.prefill_place`), from what the cost models say that
each stage takes: what a device has learned after some prompts. Prompts before that are not told
apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from optimizer.cost.link import link_at
from optimizer.cost.prompt import prompt_ids
from optimizer.cost.setting import RequestSetting
from optimizer.simulate.setup import Setup
from optimizer.simulate.workload import ClientSpec

NumIds = Callable[[int, int], int]  # of a prompt's length and its split


class PromptIds:
    """One count for all clients with the same group, device and link."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._known: dict[tuple[int, str, str], NumIds] = {}

    def of(self, spec: ClientSpec) -> NumIds:
        """Tokens of a client's prompts that go as ids."""
        key = (spec.group, spec.device, spec.link)
        if key not in self._known:
            self._known[key] = self._count(spec)
        return self._known[key]

    def _count(self, spec: ClientSpec) -> NumIds:
        setup = self._setup
        plan, group = setup.plan, setup.scenario.clients[spec.group]
        quantile = group.link.quantile
        setting = RequestSetting(
            edge=setup.devices[spec.device],
            cloud=setup.server_device,
            link=link_at(
                setup.links[spec.group, spec.link],
                epsilon=0.5 if quantile is None else 1 - quantile,
            ),
            geometry=plan.model.geometry,
            partition=plan.partition,
            kv_bits=plan.kv_bits,
            level=setup.levels[plan.level],
            chunk=plan.prefill_chunk,
            exact_front=plan.exact_front,
            front_layer_bits=plan.front_layer_bits,
            prefill=setup.place_of(group),
        )

        def counted(num_tokens: int, split: int) -> int:
            here = replace(
                setting,
                partition=replace(plan.partition, split=split),
                front_layer_bits=plan.front_layer_bits[:split],
            )
            return prompt_ids(here, num_tokens=num_tokens)

        return cache(counted)
