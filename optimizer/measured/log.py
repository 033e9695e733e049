"""The measurement log: JSON lines, appended to by running programs and read by `refine`.

Several programs may append to one file: each line is one write to a file opened for appending. The
file belongs to its user alone (mode 0600) and never grows beyond `MOST_LOG_BYTES`.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.profiles.catalog import to_plain
from hwprofiles.schema.strict_json import parse_json
from hwprofiles.schema.strict_yaml import build_strict
from optimizer.errors import MeasurementError, OptimizerError
from optimizer.measured.record import (
    MEASURED_FORMAT,
    Measured,
    MeasuredGeneration,
    MeasuredServing,
)

MOST_LOG_BYTES: Final = 16 << 20
MOST_LINE_BYTES: Final = 256 << 10
_KINDS: Final[dict[object, type[MeasuredGeneration] | type[MeasuredServing]]] = {
    "generation": MeasuredGeneration,
    "serving": MeasuredServing,
}


class MeasurementLog:
    """A file that records are appended to.

    Opening it makes the file, so that a wrong path shows before any work is done. Raises
    MeasurementError where it cannot be written, and for what is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        os.close(self._open())

    def append(self, record: Measured) -> None:
        """Write one line, whole. MeasurementError where the log is full or the disk is."""
        line = as_line(record)
        descriptor = self._open()
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # a line before was cut short
            if size + len(line) > MOST_LOG_BYTES:
                raise MeasurementError(
                    f"{self.path}: full ({MOST_LOG_BYTES >> 20} MiB), so nothing more is "
                    "recorded: refine with it, then move it away"
                )
            written = os.write(descriptor, line)
        except OSError as error:
            raise MeasurementError(f"{self.path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        if written < len(line):
            raise MeasurementError(f"{self.path}: a line was cut short (is the disk full?)")

    def _open(self) -> int:
        # O_NONBLOCK: a pipe that nobody reads must not stop the program.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise MeasurementError(f"{self.path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise MeasurementError(f"{self.path}: no regular file, so no log can be kept there")
        return descriptor


def as_line(record: Measured) -> bytes:
    """The record as one line of JSON, newline and all. Keys at their default are left out, but
    never `kind` and `format`."""
    values: dict[str, Any] = {"format": record.format, "kind": record.kind, **to_plain(record)}
    return json.dumps(values, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read_measurements(path: Path) -> list[Measured]:
    """All records of a log, in order. A last line without its newline is still being written.

    Raises MeasurementError naming file and line: no JSON, an unknown key or format, a figure that
    no machine can have.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MOST_LOG_BYTES + 1)
    except OSError as error:
        raise MeasurementError(f"{path}: {error.strerror}") from error
    if len(data) > MOST_LOG_BYTES:
        raise MeasurementError(f"{path}: larger than {MOST_LOG_BYTES >> 20} MiB")
    lines = data.split(b"\n")[:-1]
    return [
        _parsed(line, f"{path}: line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _parsed(line: bytes, where: str) -> Measured:
    if len(line) > MOST_LINE_BYTES:
        raise MeasurementError(f"{where}: longer than {MOST_LINE_BYTES >> 10} KiB")
    try:
        values = parse_json(line, source=where)
        if not isinstance(values, dict):
            raise MeasurementError(f"{where}: no JSON object")
        number = values.get("format")
        if number != MEASURED_FORMAT or isinstance(number, bool):
            raise MeasurementError(
                f"{where}: format {str(number)[:20]}: this version reads {MEASURED_FORMAT}; "
                "start a new log, or take the version that wrote this one"
            )
        kind = values.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            raise MeasurementError(
                f"{where}: kind {str(kind)[:20]!r}: one of {', '.join(map(str, _KINDS))}"
            )
        return build_strict(values, _KINDS[kind], source=where)
    except ProfileError as error:
        raise MeasurementError(str(error)) from error
    except MeasurementError:
        raise
    except OptimizerError as error:  # a plan or a model's shape that cannot be
        raise MeasurementError(f"{where}: {error}") from error
