"""Devices whose profile knows what minutes of work, or pauses, do to them."""

from __future__ import annotations

from dataclasses import replace

from hwprofiles.profiles.device import DeviceProfile, Figure, Power
from hwprofiles.profiles.power import SustainedLoad

SENSOR = "ina3221 VDD_IN (board)"


def hot(
    device: DeviceProfile,
    *,
    share: float,
    watts: float | None = None,
    idle: float | None = None,
) -> DeviceProfile:
    """The device with this share of its speed left, and these watts measured at work and idle."""
    source = next(iter(device.sources))
    load = SustainedLoad(
        source=source,
        duration_s=300.0,
        peak_steps_per_s=100.0,
        sustained_steps_per_s=100.0 * share,
        drop_after_s=80.0 if share < 0.9 else None,
    )
    power = replace(device.power or Power(), sustained=load)
    if watts is not None:
        measured = Figure(value=watts, source=source)
        power = replace(power, load_watts=measured, sensor=SENSOR)
    if idle is not None:
        power = replace(power, idle_watts=Figure(value=idle, source=source))
    return replace(device, power=power)


def drowsy(device: DeviceProfile, *, times: float) -> DeviceProfile:
    """The device with steps that take so many times as long after a pause."""
    figure = Figure(value=times, source=next(iter(device.sources)))
    return replace(device, overheads=replace(device.overheads, after_pause=figure))
