"""A client's requests as the cost models see them: its device, its link and the plan's splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from optimizer.cost.link import link_at
from optimizer.cost.setting import RequestSetting
from optimizer.cost.streaming import reading_s
from optimizer.simulate.setup import Setup
from optimizer.simulate.workload import ClientSpec

SettingAt: TypeAlias = Callable[[int], RequestSetting]  # of the split


class RequestSettings:
    """See the module's docstring. The link is held where its group holds it, else at its median."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def of(self, spec: ClientSpec) -> SettingAt:
        """A client's setting at any of the plan's splits."""
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
            reading_s=reading_s(setup.devices[spec.device], plan),
        )

        def at(split: int) -> RequestSetting:
            return replace(
                setting,
                partition=replace(plan.partition, split=split),
                front_layer_bits=plan.front_layer_bits[:split],
            )

        return at
