"""Which packages on this machine bring the module `onnxruntime`. More than one break each other."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Final

# Each installs files into the same folder: the last one wins, and removing one breaks the others.
PACKAGES: Final = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "onnxruntime-directml",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
)


def installed_packages() -> dict[str, str]:
    """The packages that are installed here, and their versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def clash_remedy(installed: dict[str, str]) -> str:
    """What to do where more than one package is installed; empty for at most one."""
    if len(installed) < 2:
        return ""
    names = " ".join(installed)
    return f"they overwrite each other: pip uninstall {names}, then install only one of them"
