"""Appends what finished generations measured to a log, and never stands in their way."""

from __future__ import annotations

import threading
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edge.generation.measured import measured_generation
from hwprofiles.profiles.engines import EDGE_ENGINES
from hwprofiles.providers.table import PROVIDERS
from optimizer.errors import MeasurementError
from optimizer.measured.log import MeasurementLog
from optimizer.measured.record import MeasuredMachine, Program
from optimizer.measured.this_machine import this_machine

if TYPE_CHECKING:
    from edge.client import EdgeClient
    from edge.generation.report import Completion
    from optimizer.artifacts.plan import Plan


class GenerationRecorder:
    """Told of every completion of a client; `watch` says which client first.

    Raises MeasurementError at once where the file cannot be written. Later a failure is one line on
    stderr, and nothing more is recorded: an answer is worth more than its measurement.
    """

    def __init__(self, path: Path, program: Program) -> None:
        self._log = MeasurementLog(path)
        self._program = program
        self._plan: Plan | None = None
        self._machine: MeasuredMachine | None = None
        self._lock = threading.Lock()
        self._has_failed = False

    def watch(self, client: EdgeClient) -> None:
        """Record what this client's generations take."""
        self._plan, self._machine = client.plan, machine_of(client)

    def __call__(self, completion: Completion) -> None:
        """Record a completion, if it says something about its plan."""
        if self._plan is None or self._machine is None or self._has_failed:
            return
        try:
            record = measured_generation(
                completion,
                self._plan,
                machine=self._machine,
                program=self._program,
                today=date.today(),
            )
            if record is not None:
                self._log.append(record)
        except (MeasurementError, ValueError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            is_first, self._has_failed = not self._has_failed, True
        if is_first:
            typer.echo(f"splitpoint: measurements end here: {error}", err=True)


def machine_of(client: EdgeClient) -> MeasuredMachine:
    """What the client's front runs on."""
    provider = PROVIDERS[client.front_report.provider]
    return this_machine(EDGE_ENGINES[provider.name], num_threads=client.num_threads)
