"""Measure this machine with the kernels the edge runs, and write what was found as a profile.

A pass times matrices (one row by working set and matrix size; many rows), attention against
cache length, the operators in between and an empty step; the profile is the median of three
passes, because a machine drifts over seconds and repeats within one moment do not see that. Then
memory, storage and limits. A reference kernel is timed before and after every pass: if it moved,
the machine was busy or throttling, and the profile says so.
"""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

from hwprofiles.machine_limits import total_memory_bytes, usable_cpus
from hwprofiles.profiler import kernel_runs, system_facts
from hwprofiles.profiler.error_spreads import measured_errors
from hwprofiles.profiler.front_pass import TYPICAL_LAYERS, TYPICAL_STEP, one_pass
from hwprofiles.profiler.front_stack import Effort
from hwprofiles.profiler.kernel_runs import KernelSettings
from hwprofiles.profiler.measured_backends import CodecKernels, DrawingKernel
from hwprofiles.profiler.parts import (
    MB,
    Progress,
    codec_speeds,
    codec_version,
    codec_warnings,
    figure,
    median_of,
    part_of,
    quality_warnings,
)
from hwprofiles.profiler.provider_probe import parts_run, parts_text
from hwprofiles.profiler.sustained import MachineSigns, SustainedProbe, sustained_warnings
from hwprofiles.profiler.timing import Timing, measure
from hwprofiles.profiles.device import DeviceProfile, Figure, Memory, Platform, Source
from hwprofiles.profiles.engines import EDGE_ENGINES
from hwprofiles.providers.table import CPU, ExecutionProvider
from hwprofiles.sensors.registry import energy_meter

SAMPLED = 32_768  # logits
SHORT_S = 90.0  # about what everything but the sustained load takes


FULL = Effort(
    num_passes=3,
    budget_s=0.05,
    working_sets=(2 * MB, 8 * MB, 16 * MB, 32 * MB, 64 * MB, 128 * MB, 320 * MB),
    rows=(2, 4, 8, 32, 128, 512),
    brief_exact=False,
    stack_rows=(1, 32, 128),
    attention=(
        (1, (16, 2000)),
        (8, (16, 1024)),
        (32, (32, 1024)),
        (128, (128, 1024)),
        (512, (512, 1536)),
    ),
)
QUICK = Effort(
    num_passes=1,
    budget_s=0.015,
    working_sets=(2 * MB, 16 * MB, 40 * MB, 128 * MB, 320 * MB),
    rows=(2, 8, 32, 256),
    brief_exact=True,
    stack_rows=(1, 32, 128),
    attention=((1, (16, 2000)), (32, (32, 512)), (512, (512, 1024))),
)


def profile_device(
    *,
    name: str | None = None,
    quick: bool = False,
    progress: Progress = lambda _share, _what: None,
    command: str = "splitpoint profile device",
    storage_folder: Path | None = None,
    codec: CodecKernels | None = None,
    provider: ExecutionProvider = CPU,
    sustained_s: float = 0.0,
    signs: MachineSigns | None = None,
    drawing: DrawingKernel | None = None,
) -> DeviceProfile:
    """Measure this machine as an edge: about 90 s, or a quarter of that when `quick`.

    `progress` is called with the share done, 0 to 1, and what comes next; `codec`: its coders,
    to be timed too; `drawing`: what draws a token from logits, for devices that hold the whole
    model; `provider`: whose kernels, with the CPU's for what it cannot run.
    `sustained_s`: seconds of work without a pause after that; 0: none. `signs`: how to look at the
    machine meanwhile (None: with what it has). Raises ProviderError where it cannot be used.
    """
    effort = QUICK if quick else FULL
    spreads: list[float] = []
    short_share = SHORT_S / (SHORT_S + sustained_s)
    short = part_of(progress, 0.0, short_share)
    threads = usable_cpus()  # what the edge uses; a warning says when fewer are faster
    settings = KernelSettings(threads, provider)
    probe = _sustained_probe(settings, sustained_s, signs) if sustained_s else None
    short(0.0, "number of threads")
    if probe is not None:
        probe.rest()
    sweep = _thread_sweep(effort, provider)
    references = [_reference(effort, settings).seconds]
    passes = []
    for index in range(effort.num_passes):
        start, share = 0.02 + 0.9 * index / effort.num_passes, 0.9 / effort.num_passes
        passes.append(one_pass(settings, effort, spreads, part_of(short, start, start + share)))
        references.append(_reference(effort, settings).seconds)
        if probe is not None:
            probe.burst(2 * effort.budget_s)
    rates = median_of(passes)
    overheads = rates.overheads
    if drawing is not None:
        drawn = measure(drawing(SAMPLED), budget_s=2 * effort.budget_s)
        per_logit = figure(drawn.seconds / SAMPLED, drawn)
        overheads = replace(overheads, sample_s_per_logit=per_logit)
    short(0.92, "codec")
    speeds = () if codec is None else codec_speeds(codec, effort.budget_s / 2)
    short(0.95, "memory and storage")
    memory = _memory(effort, provider)
    storage = system_facts.storage_read_rate(storage_folder, int((32 if quick else 128) * MB))
    short(1.0, "done")
    power = None if probe is None else probe.run(part_of(progress, short_share, 1.0))
    return DeviceProfile(
        name=name or socket.gethostname().split(".")[0] or "this-machine",
        summary=f"{system_facts.processor_name()}, {usable_cpus()} cores",
        roles=("edge",),
        measured=True,
        platform=_platform(settings, codec),
        memory=memory,
        kernels=rates.kernels,
        attention=rates.attention,
        overheads=overheads,
        codec=speeds,
        sources={
            "bench": Source(kind="measured", reference=command, date=date.today().isoformat())
        },
        storage_read_bytes_per_s=Figure(value=storage, source="bench") if storage else None,
        power=power,
        errors=measured_errors(rates.kernels, overheads, references),
        warnings=(
            *_provider_warnings(provider),
            *_thread_warnings(sweep),
            *codec_warnings(speeds, codec),
            *quality_warnings(references, spreads),
            *(() if power is None else sustained_warnings(power)),
        ),
    )


def _platform(settings: KernelSettings, codec: CodecKernels | None) -> Platform:
    return Platform(
        processor=system_facts.processor_name(),
        num_cores=usable_cpus(),
        num_threads=settings.num_threads,
        operating_system=f"{platform.system()} {platform.release()} {platform.machine()}",
        engine=EDGE_ENGINES[settings.provider.name],
        versions={
            "python": platform.python_version(),
            **kernel_runs.versions(),
            **codec_version(codec),
        },
    )


def _sustained_probe(
    settings: KernelSettings, seconds: float, signs: MachineSigns | None
) -> SustainedProbe:
    (step,) = kernel_runs.decoder_calls(TYPICAL_LAYERS, cases=TYPICAL_STEP, settings=settings)
    signs = MachineSigns(meter=energy_meter()) if signs is None else signs
    return SustainedProbe(step=step, seconds=seconds, signs=signs)


def _provider_warnings(provider: ExecutionProvider) -> Iterator[str]:
    parts = parts_run(provider)
    if left := parts_text(parts, "cpu"):
        yield f"{provider.name} cannot run {left}: that was measured on the CPU"
    if missing := parts_text(parts, "nobody"):
        yield f"this onnxruntime is too old for {missing}: no plan can use that here"


def _thread_warnings(sweep: dict[int, float]) -> Iterator[str]:
    best = min(sweep, key=lambda count: sweep[count])
    if sweep[best] < 0.9 * sweep[max(sweep)]:
        yield (
            f"{best} threads take {sweep[best] / sweep[max(sweep)]:.0%} of the time of "
            f"{max(sweep)}: run the edge with {best}"
        )


def _reference(effort: Effort, settings: KernelSettings) -> Timing:
    return kernel_runs.time_matmul(
        width=512, inner=1536, num_pairs=8, num_rows=(1,), weight_bits=4, compute="int8",
        settings=settings, budget_s=10 * effort.budget_s,
    )[0]  # fmt: skip


def _thread_sweep(effort: Effort, provider: ExecutionProvider) -> dict[int, float]:
    """Seconds of single-row layers with 1, 2, 4 ... threads, up to all cores."""
    cores = usable_cpus()
    counts = sorted({min(1 << power, cores) for power in range(cores.bit_length() + 1)})
    return {
        count: kernel_runs.time_decoder(
            TYPICAL_LAYERS,
            cases=TYPICAL_STEP,
            settings=KernelSettings(count, provider),
            budget_s=2 * effort.budget_s,
        )[0].seconds
        for count in counts
    }


def _memory(effort: Effort, provider: ExecutionProvider) -> Memory:
    with system_facts.begin_process_base(provider=provider.name) as child:
        base = child.result()
    bandwidth, timing = system_facts.memory_bandwidth(int(128 * MB), effort.budget_s)
    return Memory(
        total_bytes=Figure(value=float(total_memory_bytes()), source="bench"),
        usable_bytes=Figure(value=float(system_facts.usable_memory_bytes()), source="bench"),
        runtime_base_bytes=Figure(value=float(base.num_bytes), source="bench"),
        base_file_bytes=Figure(value=float(base.file_bytes), source="bench"),
        bandwidth_bytes_per_s=figure(bandwidth, timing),
    )
