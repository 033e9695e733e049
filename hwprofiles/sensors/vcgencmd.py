"""What a Raspberry Pi's firmware says through its own tool, where that is installed.

`vcgencmd pmic_read_adc` (Raspberry Pi 5) has volts and amperes of each rail behind the power chip,
which do not overlap. They leave out what the chip itself loses and what hangs on 5 V, such as USB
devices. `vcgencmd get_throttled` has flags. Source: Raspberry Pi's documentation of vcgencmd.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Final

from hwprofiles.sensors.energy import MOST_WATTS, EnergySensor, GaugeTally

EVERY_S: Final = 1.0  # a reading starts a process
PATIENCE_S: Final = 2.0
TOOL: Final = "vcgencmd"
_RAIL: Final = re.compile(
    r"^\s*(?P<rail>[A-Z0-9_]{1,32})_(?P<kind>[AV]) (?:current|volt)\(\d{1,3}\)="
    r"(?P<value>\d{1,4}(?:\.\d{1,12})?)[AV]\s*$",
)
_RAIL_LINE: Final = re.compile(r"_[AV] (?:current|volt)\(")  # of a rail, whatever its value
# Bits of get_throttled that hold now: too little voltage, a capped clock, throttled, the soft limit
# of temperature. The bits from 16 on say that it has happened since the start.
THROTTLED_NOW: Final = 0b1111

RunTool = Callable[[str], str | None]  # one word of vcgencmd to what it prints; None: not to be had


def run_vcgencmd(word: str) -> str | None:
    """What `vcgencmd WORD` prints; None where there is no such tool, or it fails."""
    tool = shutil.which(TOOL)
    if tool is None:
        return None
    try:
        done = subprocess.run(
            [tool, word],
            capture_output=True,
            check=True,
            timeout=PATIENCE_S,
            text=True,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def pmic_sensor(run: RunTool = run_vcgencmd) -> EnergySensor | None:
    """The sum of the Raspberry Pi 5's rails; None elsewhere."""
    if rails_watts(run("pmic_read_adc")) is None:
        return None
    return EnergySensor(
        name="vcgencmd pmic_read_adc",
        covers="board",
        every_s=EVERY_S,
        tally=lambda: GaugeTally(lambda: rails_watts(run("pmic_read_adc"))),
    )


def rails_watts(text: str | None) -> float | None:
    """Watts of all rails that have amperes; None without any, where one lacks its volts, and where
    a line says no plausible number: the sum of the others would be too little."""
    found: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    lines = [line for line in (text or "").splitlines() if _RAIL_LINE.search(line)]
    for line in lines:
        match = _RAIL.search(line)
        if match is None:
            return None
        found[match["kind"]][match["rail"]] = float(match["value"])
    if not found["A"].keys() <= found["V"].keys():
        return None
    watts = sum(amperes * found["V"][rail] for rail, amperes in found["A"].items())
    return watts if 0 < watts <= MOST_WATTS else None


def throttled_flag(run: RunTool = run_vcgencmd) -> bool | None:
    """Whether the firmware holds the clock down now; None where it does not say."""
    match = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})\s*", run("get_throttled") or "")
    return None if match is None else bool(int(match[1], 16) & THROTTLED_NOW)
