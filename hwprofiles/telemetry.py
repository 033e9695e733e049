"""Turn off what libraries report to their makers. It must run before they are imported.

ONNX Runtime's Linux wheels from 1.29 on send events to Microsoft by default. The import alone
writes a device id into the home folder. Its own switch after the import comes too late for that.
"""

from __future__ import annotations

import os
from typing import Final

_VARIABLE: Final = "ORT_DISABLE_TELEMETRY"


def turn_off_telemetry() -> None:
    """Called by the `__init__` of every package that imports ONNX Runtime.

    A value that the user has set stays.
    """
    os.environ.setdefault(_VARIABLE, "1")
