"""The processor's energy counters: RAPL, on Intel and AMD, as the kernel shows it.

/sys/class/powercap/intel-rapl:N is one package, or one die of it (AMD's lie in the same tree).
Below it are core, uncore and dram, which are parts of it or lie beside it; `psys` is a platform
that contains the packages. Only packages are added up, since nothing else is sure not to
overlap. Since Linux 5.10 only root reads energy_uj; then there is no sensor.
Source: the kernel's power/powercap/powercap.rst.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Final

from hwprofiles.cgroups import text_of
from hwprofiles.sensors.energy import CounterTally, CounterZone, EnergySensor
from hwprofiles.sensors.system_files import folders_in, whole_number

FOLDER: Final = "sys/class/powercap"
_TOP: Final = re.compile(r"intel-rapl:[0-9]+")
_PACKAGE: Final = re.compile(r"package-[0-9]{1,4}(-die-[0-9]{1,4})?")
MOST_MICROJOULES: Final = 10**17
# Counters wrap after minutes at the earliest: 65 kJ are four minutes at 280 W.
EVERY_S: Final = 30.0


def rapl_sensor(root: Path) -> EnergySensor | None:
    """All packages together; None where there are none, or one is not readable."""
    zones, names = [], []
    for folder in folders_in(root / FOLDER, "intel-rapl:*"):
        name = text_of(folder / "name") or ""
        if not _TOP.fullmatch(folder.name) or not _PACKAGE.fullmatch(name):
            continue
        wraps_at = whole_number(folder / "max_energy_range_uj", low=1, high=MOST_MICROJOULES)
        if wraps_at is None or _joules(folder) is None:
            return None
        zones.append(CounterZone(partial(_joules, folder), wraps_at / 1e6))
        names.append(name)
    if not zones:
        return None
    return EnergySensor(
        name=f"rapl {' + '.join(names)}",
        covers="processor",
        every_s=EVERY_S,
        tally=lambda: CounterTally(zones),
    )


def _joules(folder: Path) -> float | None:
    counted = whole_number(folder / "energy_uj", low=0, high=MOST_MICROJOULES)
    return None if counted is None else counted / 1e6
