"""The watch looks at the device now and then, and remembers how long frames waited."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from edge.device.signs import read_signs
from edge.generation.split_watch import ANSWERS, SplitWatch
from optimizer.policy.split_moves import UP_AFTER_S, Signs


@dataclass
class Device:
    signs: Signs = field(default_factory=lambda: Signs(free_memory=0.5))
    now_s: float = 0.0
    looks: int = 0

    def read(self) -> Signs:
        self.looks += 1
        return self.signs


@dataclass
class Step:
    cloud_s: float
    cloud_queue_s: float


def test_a_short_device_wishes_a_lower_split_and_is_looked_at_once_a_second() -> None:
    device = Device()
    watch = SplitWatch((2, 4), now=lambda: device.now_s, signs=device.read)
    assert [watch.wished() for _ in range(5)] == [4] * 5
    assert device.looks == 1
    device.signs = Signs(free_memory=0.01)
    assert watch.wished() == 4
    device.now_s = 1.0
    assert watch.wished() == 2


def test_a_server_whose_answers_wait_brings_the_split_back() -> None:
    device = Device(signs=Signs(free_memory=0.01))
    watch = SplitWatch((2, 4), now=lambda: device.now_s, signs=device.read)
    assert watch.wished() == 2
    device.signs = Signs(free_memory=0.5)
    step: Any = Step(cloud_s=1.0, cloud_queue_s=0.9)
    for _ in range(ANSWERS):
        watch.answered(step)
    device.now_s = UP_AFTER_S
    assert watch.wished() == 4


def test_a_frame_that_took_no_time_tells_nothing() -> None:
    watch = SplitWatch((2, 4), now=lambda: 0.0, signs=Signs)
    step: Any = Step(cloud_s=0.0, cloud_queue_s=0.0)
    watch.answered(step)
    assert watch.wished() == 4


def test_what_this_system_shows_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    signs = read_signs()
    assert signs.free_memory is not None
    assert 0 < signs.free_memory <= 1
    battery: Any = type("Battery", (), {"percent": 12.0, "power_plugged": False})
    sensor: Any = type("Sensor", (), {"current": 95.0, "critical": 100.0})
    wrong: Any = type("Sensor", (), {"current": 60.0, "critical": 1.0})
    unknown: Any = type("Sensor", (), {"current": 95.0, "critical": None})
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    monkeypatch.setattr(
        psutil, "sensors_temperatures", lambda: {"cpu": [sensor, unknown, wrong]}, raising=False
    )
    signs = read_signs()
    assert (signs.battery, signs.heat) == (0.12, 0.95)
    battery.power_plugged = True
    assert read_signs().battery is None


def test_a_system_without_sensors_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("no /sys")

    monkeypatch.setattr(psutil, "sensors_battery", missing, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", missing, raising=False)
    signs = read_signs()
    assert (signs.battery, signs.heat, signs.shortage) == (None, None, "")
