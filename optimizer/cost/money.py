"""What a token costs in money: the server's time, and the device's electricity.

Ours. A token costs

    cloud seconds * price an hour / 3,600 + busy seconds * watts * price a kWh / 3.6e6

Cloud seconds are the token's share of the server (`round_trip.cloud_share_s`). Busy seconds are the
device's own for it: front, encoder, drafter, and sampling where the device is whole. `watts` are
what its profile measured under the front's load. Where it measured none, they are the most that it
says the device draws, and the energy is an upper bound of what computing takes. What a device draws
while it waits is left out: it does so anyway.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import Quantity
from optimizer.errors import PlanError

PER_MILLION: Final = 1e6
SECONDS_AN_HOUR: Final = 3600.0
JOULES_A_KWH: Final = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Money for an hour of one server, and for a kilowatt-hour on the device. None: not counted.

    Raises PlanError for a price that is negative or not finite.
    """

    cloud_per_hour: float | None = None
    energy_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            price = getattr(self, name)
            if price is not None and not 0 <= price < math.inf:
                raise PlanError(f"price {name}: {price} must be a finite number, at least 0")

    @property
    def are_given(self) -> bool:
        """Whether anything has a price above 0, so that costs can be compared."""
        return bool(self.cloud_per_hour or self.energy_per_kwh)

    def leaves_out(self, device: DeviceProfile) -> bool:
        """Whether energy has a price and this device's energy is unknown."""
        return self.energy_per_kwh is not None and watts_of(device) is None

    def cost(self, *, cloud_s: Quantity, joules: Quantity) -> Quantity:
        """Money for so much time of a server and energy of a device."""
        return cloud_s * ((self.cloud_per_hour or 0.0) / SECONDS_AN_HOUR) + joules * (
            (self.energy_per_kwh or 0.0) / JOULES_A_KWH
        )


NO_PRICES: Final = Prices()


def watts_of(device: DeviceProfile) -> float | None:
    """Watts of a device at work: measured, or else the most that it draws. None: not stated."""
    power = device.power
    figure = None if power is None else power.load_watts or power.max_watts
    return None if figure is None else figure.value


def has_measured_watts(device: DeviceProfile) -> bool:
    """Whether `watts_of` was measured under the front's load."""
    return device.power is not None and device.power.load_watts is not None
