"""A device profile whose rates are corrected by what programs measured while they worked.

Records of another machine, provider or number of threads say nothing about a profile: they are
left out and counted. `refiner.py` finds the factors. A link's rates and the network stacks are no
part of a machine: they are reported and change nothing. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from hwprofiles.profiles.device import CODEC_KERNEL, IN_NUMPY, DeviceProfile, Source
from hwprofiles.profiles.scaled import with_source
from optimizer.errors import MeasurementError
from optimizer.measured import samples as measured_samples
from optimizer.measured.record import (
    Measured,
    MeasuredGeneration,
    MeasuredMachine,
    MeasuredServing,
)
from optimizer.measured.refiner import LEAST_OBSERVATIONS, ProfileRefiner, RefinedFactor
from optimizer.measured.residuals import errors_of

RecordT = TypeVar("RecordT", MeasuredGeneration, MeasuredServing)


class LinkFigures(NamedTuple):
    """Medians over the log's generations, for people: a profile of a machine has no link."""

    rtt_s: float
    up_bytes_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refinement:
    """A corrected profile, what was corrected, and what of the log was left out, by reason."""

    profile: DeviceProfile
    factors: tuple[RefinedFactor, ...]
    num_used: int
    left_out: Mapping[str, int]
    link: LinkFigures | None = None


def refine_profile(
    profile: DeviceProfile,
    records: Sequence[Measured],
    *,
    name: str,
    command: str,
    any_processor: bool = False,
) -> Refinement:
    """`profile` corrected by the records of its machine, under a new name.

    command: what the source of the figures names. any_processor: take records of another processor
    than the profile's (a data sheet names it in words of its own); they must then agree among
    themselves, and the new profile has that processor. Raises MeasurementError: no record is of
    this machine, or a factor is beyond all reason.
    """
    used, left_out, processor = _of_machine(profile, records, any_processor=any_processor)
    days = sorted({record.date for record in used})
    source = Source(kind="derived", reference=command, date=days[-1])
    start = with_source(profile, source)
    if "cloud" in profile.roles and "edge" not in profile.roles:
        found, factors = _refined_back(start, _only(used, MeasuredServing))
        link, unit = None, "intervals of serving"
    else:
        generations = _only(used, MeasuredGeneration)
        found, factors = _refined_front(start, generations)
        link, unit = _link_of(generations), "generations"
    changed = [item for item in factors if item.ratio is not None]
    if not changed:
        raise MeasurementError(
            f"no kind of work was observed {LEAST_OBSERVATIONS} times in {len(used)} {unit}: "
            "measure for longer"
        )
    times = ", ".join(f"{item.factor} x {item.ratio:.3f}" for item in changed)
    found = with_source(
        found,
        replace(source, note=f"refined from {len(used)} {unit}, {days[0]} to {days[-1]}"),
        factors=replace(source, note=f"times of {times}"),
    )
    found = replace(
        found,
        name=name,
        platform=replace(found.platform, processor=processor),
        errors=errors_of(factors, found, _only(used, MeasuredGeneration)),
    )
    return Refinement(
        profile=found,
        factors=tuple(factors),
        num_used=len(used),
        left_out=left_out,
        link=link,
    )


def _of_machine(
    profile: DeviceProfile, records: Sequence[Measured], *, any_processor: bool
) -> tuple[list[Measured], dict[str, int], str]:
    """Records of the profile's machine and side, why the others were left out, the processor."""
    used: list[Measured] = []
    left_out: dict[str, int] = {}
    is_cloud = "edge" not in profile.roles
    for record in records:
        reason = _other_machine(profile, record.machine, any_processor=any_processor)
        if isinstance(record, MeasuredServing) is not is_cloud:
            reason = "of the server's side" if not is_cloud else "of the device's side"
        if reason:
            left_out[reason] = left_out.get(reason, 0) + 1
        else:
            used.append(record)
    if not used:
        why = "; ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise MeasurementError(
            f"no record is of the machine of {profile.name} ({why or 'the log is empty'})"
        )
    processors = sorted({record.machine.processor for record in used})
    if any_processor and len(processors) > 1:
        raise MeasurementError(f"the log is of several processors ({', '.join(processors)})")
    return used, left_out, processors[0]


def _other_machine(profile: DeviceProfile, machine: MeasuredMachine, *, any_processor: bool) -> str:
    """Why figures of `machine` say nothing about the profile's; empty where they do."""
    platform = profile.platform
    if machine.processor != platform.processor and not any_processor:
        return f"of the processor {machine.processor}, not {platform.processor}"
    if machine.engine != platform.engine:
        return f"with {machine.engine}, not {platform.engine}"
    if machine.num_threads != platform.num_threads:
        return f"with {machine.num_threads} threads, not {platform.num_threads}"
    known = platform.versions.get(CODEC_KERNEL)
    if known is not None and (known == IN_NUMPY) is not (machine.codec_kernel == IN_NUMPY):
        return f"with the codec's {machine.codec_kernel} kernel, not {known}"
    return ""


def _only(records: Sequence[Measured], kind: type[RecordT]) -> list[RecordT]:
    return [record for record in records if isinstance(record, kind)]


def _refined_front(
    profile: DeviceProfile, generations: Sequence[MeasuredGeneration]
) -> tuple[DeviceProfile, list[RefinedFactor]]:
    refiner = ProfileRefiner(profile)
    predict, used = measured_samples.predict_front, measured_samples.front_precisions
    answers = measured_samples.front_samples(generations, prompts=False)
    prompts = measured_samples.front_samples(generations, prompts=True)
    encoders = measured_samples.encoder_samples(generations)
    refiner.settle(
        [
            lambda: refiner.one_row("front, one row", answers, predict, used),
            lambda: refiner.many_rows("front, prompts", prompts, predict, used),
            lambda: refiner.coders(encoders, encodes=True),
            lambda: refiner.watts(generations),
        ]
    )
    refiner.base_memory(generations)
    return refiner.profile, list(refiner.totals.factors.values())


def _refined_back(
    profile: DeviceProfile, servings: Sequence[MeasuredServing]
) -> tuple[DeviceProfile, list[RefinedFactor]]:
    refiner = ProfileRefiner(profile)
    predict, used = measured_samples.predict_back, measured_samples.back_precisions
    single = measured_samples.back_samples(servings, many=False)
    several = measured_samples.back_samples(servings, many=True)
    decoders = measured_samples.decoder_samples(servings)
    refiner.settle(
        [
            lambda: refiner.one_row("back, one row", single, predict, used),
            lambda: refiner.many_rows("back, several rows", several, predict, used),
            lambda: refiner.coders(decoders, encodes=False),
            lambda: refiner.sampling(servings),
        ]
    )
    return refiner.profile, list(refiner.totals.factors.values())


def _link_of(generations: Sequence[MeasuredGeneration]) -> LinkFigures | None:
    links = [item.link for item in generations if item.link is not None]
    if not links:
        return None
    rates = [link.up_bytes_per_s for link in links if link.up_bytes_per_s is not None]
    return LinkFigures(
        rtt_s=float(np.median([link.rtt_s for link in links])),
        up_bytes_per_s=float(np.median(rates)) if rates else None,
    )
