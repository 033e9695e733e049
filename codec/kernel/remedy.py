"""How to get a compiled kernel on this very system: a wheel's name, or a compiler's package."""

from __future__ import annotations

import platform
import shutil
import sys
from typing import Final

# Systems that `make wheels` builds for: (system, processor) -> the end of the wheel's name.
WHEELS: Final = {
    ("Linux", "x86_64"): "manylinux_2_28_x86_64",
    ("Linux", "aarch64"): "manylinux_2_28_aarch64",
    ("Darwin", "arm64"): "macosx_13_0_arm64",
    ("Darwin", "x86_64"): "macosx_13_0_x86_64",
}
OLDEST_GLIBC: Final = (2, 28)
COMPILERS: Final = ("cc", "gcc", "clang")
# Package managers, and what gives a C compiler with each. Termux has apt too, so pkg comes first.
_PACKAGES: Final = {
    "pkg": "pkg install clang",
    "apt-get": "apt-get install gcc libc6-dev",
    "dnf": "dnf install gcc",
    "apk": "apk add gcc musl-dev",
    "pacman": "pacman -S gcc",
    "zypper": "zypper install gcc",
    "xcode-select": "xcode-select --install",
}
_REINSTALL: Final = "pip install --force-reinstall --no-deps . in the sources' folder"


def remedy() -> str:
    """One line: what to do here, so that the next start finds the kernel."""
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    if compiler is not None:
        build = f"{_REINSTALL} ({compiler} is there)"
    else:
        install = next((text for name, text in _PACKAGES.items() if shutil.which(name)), None)
        build = f"{install or 'install a C compiler'}, then {_REINSTALL}"
    wheel = wheel_here()
    return build if wheel is None else f"install the wheel splitpoint-*-{wheel}.whl, or {build}"


def wheel_here() -> str | None:
    """The end of the name of the wheel for this interpreter; None where none is built for it."""
    if sys.maxsize < 1 << 32:  # a 32-bit Python, perhaps on a 64-bit system
        return None
    name = WHEELS.get((platform.system(), platform.machine()))
    if name is None or not name.startswith("manylinux"):
        return name
    library, version = platform.libc_ver()
    parts = version.split(".")
    known = library == "glibc" and len(parts) >= 2 and all(part.isdigit() for part in parts[:2])
    return name if known and (int(parts[0]), int(parts[1])) >= OLDEST_GLIBC else None
