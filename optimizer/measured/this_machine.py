"""This machine in the words of a measurement record, which are those of a device profile."""

from __future__ import annotations

from codec.kernel.library import is_compiled
from hwprofiles.profiler.system_facts import processor_name
from hwprofiles.profiles.engines import Engine
from optimizer.measured.record import MOST_CHARS, MeasuredMachine


def this_machine(engine: Engine, *, num_threads: int) -> MeasuredMachine:
    """What runs here. num_threads: of the layers' kernels."""
    shown = "".join(char for char in processor_name() if char.isprintable())
    return MeasuredMachine(
        processor=shown[:MOST_CHARS],
        engine=engine,
        num_threads=num_threads,
        codec_kernel="compiled" if is_compiled() else "numpy",
    )
