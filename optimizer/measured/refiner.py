"""The factors by which a profile is off, one kind of work after the other.

For each kind of work the factor is the median of measured over predicted seconds. One profile's
rates serve several kinds of work (a matrix's start belongs to one row and to many), so the factors
are found in turn, each with the others applied, until none changes any more. Only what was
observed often enough changes. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.scaled import (
    PrecisionsUsed,
    scale_coder,
    scale_many_rows,
    scale_one_row,
    scale_sampling,
    scale_watts,
    with_base_bytes,
)
from optimizer.artifacts.plan import Plan
from optimizer.cost.energy import measured_watts
from optimizer.cost.memory import edge_memory
from optimizer.errors import MeasurementError
from optimizer.measured import samples as measured_samples
from optimizer.measured.energy_figures import sensor_of
from optimizer.measured.record import MeasuredGeneration, MeasuredServing
from optimizer.measured.robust import TwoFactors, Values, median_ratio, spread_of, two_factors
from optimizer.measured.samples import CodecSamples, SplitPrediction, StepKey, StepSamples

LEAST_OBSERVATIONS: Final = 5
# Beyond this the log is of another machine, or of a broken one.
MOST_FACTOR: Final = 50.0
MOST_ROUNDS: Final = 12
SETTLED: Final = 0.001
# A process is never taken to be smaller than this share of what the profile says.
LEAST_BASE_SHARE: Final = 0.3

Predict = Callable[[DeviceProfile, StepSamples], SplitPrediction]
PrecisionsOf = Callable[[DeviceProfile, StepKey], PrecisionsUsed]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinedFactor:
    """What one kind of work takes over what the profile said.

    ratio: 1.5 where it takes half as long again; None: too few observations, left alone.
    spread: (p90 - p10) / median of measured over predicted, with the factor applied.
    """

    factor: str
    observations: int
    ratio: float | None
    spread: float | None = None


class FactorTotals:
    """Factors so far, by name, with how they are shown."""

    def __init__(self) -> None:
        self.factors: dict[str, RefinedFactor] = {}

    def multiply(self, name: str, ratio: float, *, observations: int, spread: float) -> float:
        """Note one more correction; returns how far it is from none."""
        before = self.factors.get(name)
        total = ratio * (1.0 if before is None or before.ratio is None else before.ratio)
        if not 1 / MOST_FACTOR <= total <= MOST_FACTOR:
            raise MeasurementError(
                f"{name}: takes {total:.3g} times what the profile says: this profile is of "
                "another machine or other software, or other programs kept this one busy"
            )
        self.factors[name] = RefinedFactor(
            factor=name, observations=observations, ratio=total, spread=spread
        )
        return abs(ratio - 1)

    def too_few(self, name: str, observations: int) -> float:
        """Note that this stays as it is."""
        self.factors[name] = RefinedFactor(factor=name, observations=observations, ratio=None)
        return 0.0


class ProfileRefiner:
    """Corrects a profile in rounds; each step asks the profile as it is by then."""

    def __init__(self, profile: DeviceProfile) -> None:
        self.profile = profile
        self.totals = FactorTotals()

    def settle(self, steps: Sequence[Callable[[], float]]) -> None:
        """Take the steps in turn until none of them changes anything."""
        for _ in range(MOST_ROUNDS):
            if max(step() for step in steps) < SETTLED:
                return

    def one_row(
        self,
        name: str,
        found: Mapping[StepKey, StepSamples],
        predict: Predict,
        precisions: PrecisionsOf,
    ) -> float:
        """Steps of one row: attention apart from the rest where the histories tell them apart."""
        change = 0.0
        for label, used, group, seconds in self._enough(name, found, precisions):
            parts = [predict(self.profile, item) for item in group]
            work = np.concatenate([part.work_s for part in parts])
            attention = np.concatenate([part.attention_s for part in parts])
            factors = two_factors(seconds, work, attention)
            fitted = factors.first * work + factors.second * attention
            spread = spread_of(seconds / fitted)
            self.profile = scale_one_row(
                self.profile, used, work=factors.first, attention=factors.second
            )
            count = len(seconds)
            change = max(
                change,
                self.totals.multiply(label, factors.first, observations=count, spread=spread),
                self.totals.multiply(
                    f"{label}, attention", factors.second, observations=count, spread=spread
                ),
            )
        return change

    def many_rows(
        self,
        name: str,
        found: Mapping[StepKey, StepSamples],
        predict: Predict,
        precisions: PrecisionsOf,
    ) -> float:
        """Steps of several rows."""
        change = 0.0
        for label, used, group, seconds in self._enough(name, found, precisions):
            predicted = np.concatenate([predict(self.profile, item).total_s for item in group])
            ratio = median_ratio(seconds, predicted)
            self.profile = scale_many_rows(self.profile, used, work=ratio)
            spread = spread_of(seconds / predicted)
            change = max(
                change,
                self.totals.multiply(label, ratio, observations=len(seconds), spread=spread),
            )
        return change

    def coders(self, found: Sequence[CodecSamples], *, encodes: bool) -> float:
        """Coders of every kind that was used and that the profile has timed."""
        change = 0.0
        for kind in sorted({item.kind for item in found}):
            name = f"{'encode' if encodes else 'decode'} {kind}"
            group = [item for item in found if item.kind == kind]
            seconds = np.concatenate([item.seconds for item in group])
            parts = [
                measured_samples.predict_coder(self.profile, item, encodes=encodes)
                for item in group
            ]
            frame = np.concatenate([part.frame_s for part in parts])
            elements = np.concatenate([part.elements_s for part in parts])
            is_timed = (frame + elements > 0).all()
            if len(seconds) < LEAST_OBSERVATIONS or not is_timed:
                change = max(change, self.totals.too_few(name, len(seconds)))
                continue
            factors = _coder_factors(seconds, frame, elements)
            self.profile = scale_coder(
                self.profile,
                kind,
                encodes=encodes,
                frame=factors.first,
                element=factors.second,
            )
            spread = spread_of(seconds / (factors.first * frame + factors.second * elements))
            count = len(seconds)
            change = max(
                change,
                self.totals.multiply(name, factors.first, observations=count, spread=spread),
                self.totals.multiply(
                    f"{name}, elements", factors.second, observations=count, spread=spread
                ),
            )
        return change

    def sampling(self, servings: Sequence[MeasuredServing]) -> float:
        """Drawing tokens on a server."""
        drawn = [item for item in servings if item.sample_s]
        seconds = np.array([item.sample_s for item in drawn], dtype=np.float64)
        predicted = measured_samples.predict_sampling(self.profile, drawn)
        if len(seconds) < LEAST_OBSERVATIONS or not (predicted > 0).all():
            return self.totals.too_few("sampling", len(seconds))
        ratio = median_ratio(seconds, predicted)
        self.profile = scale_sampling(self.profile, ratio)
        return self.totals.multiply(
            "sampling", ratio, observations=len(seconds), spread=spread_of(seconds / predicted)
        )

    def watts(self, generations: Sequence[MeasuredGeneration]) -> float:
        """Watts while the device waits and while it computes, of the profile's own sensor."""
        known = measured_watts(self.profile)
        found = [item.energy for item in generations if item.energy is not None]
        used = [item for item in found if item.sensor == sensor_of(self.profile)]
        if known is None or not found:
            return 0.0
        if len(used) < LEAST_OBSERVATIONS:
            return self.totals.too_few("watts", len(used))
        measured = np.array([item.joules for item in used])
        waiting = np.array([known.waiting * (item.seconds - item.busy_s) for item in used])
        working = np.array([known.working * item.busy_s for item in used])
        if not (working > 0).all():
            return self.totals.too_few("watts", len(used))
        factors = two_factors(measured, working, waiting)
        self.profile = scale_watts(self.profile, working=factors.first, waiting=factors.second)
        spread = spread_of(measured / (factors.first * working + factors.second * waiting))
        count = len(used)
        return max(
            self.totals.multiply(
                "watts, computing", factors.first, observations=count, spread=spread
            ),
            self.totals.multiply(
                "watts, waiting", factors.second, observations=count, spread=spread
            ),
        )

    def base_memory(self, generations: Sequence[MeasuredGeneration]) -> None:
        """The process before it has a model, from peaks of programs that hold nothing else."""
        alone = [item for item in generations if item.program == "run"]
        if len(alone) < LEAST_OBSERVATIONS:
            self.totals.too_few("process base", len(alone))
            return
        before = self.profile.memory.runtime_base_bytes.value
        bases = np.array(
            [
                before + item.peak_memory_bytes - predicted_peak_bytes(self.profile, item)
                for item in alone
            ]
        )
        base = max(float(np.median(bases)), LEAST_BASE_SHARE * before)
        self.profile = with_base_bytes(self.profile, base)
        self.totals.multiply(
            "process base",
            base / before,
            observations=len(alone),
            spread=spread_of(np.maximum(bases, 1.0)),
        )

    def _enough(
        self, name: str, found: Mapping[StepKey, StepSamples], precisions: PrecisionsOf
    ) -> Iterator[tuple[str, PrecisionsUsed, list[StepSamples], Values]]:
        """Groups of alike kernels with enough samples: the factor's name, the kernels, the samples
        and all of their seconds. The others are noted as left alone."""
        for used, group in self._by_precisions(found, precisions):
            label = self._label(name, used, found, precisions)
            seconds = np.concatenate([item.seconds for item in group])
            if len(seconds) < LEAST_OBSERVATIONS:
                self.totals.too_few(label, len(seconds))
            else:
                yield label, used, group, seconds

    def _by_precisions(
        self, found: Mapping[StepKey, StepSamples], precisions: PrecisionsOf
    ) -> list[tuple[PrecisionsUsed, list[StepSamples]]]:
        """Samples by the kernels that they ran on, the most frequent first."""
        groups: dict[PrecisionsUsed, list[StepSamples]] = {}
        for key, item in found.items():
            groups.setdefault(precisions(self.profile, key), []).append(item)
        return sorted(groups.items(), key=lambda pair: -sum(len(item.seconds) for item in pair[1]))

    def _label(
        self,
        name: str,
        used: PrecisionsUsed,
        found: Mapping[StepKey, StepSamples],
        precisions: PrecisionsOf,
    ) -> str:
        """The factor's name, with its bits where there are several."""
        if len({precisions(self.profile, key) for key in found}) == 1:
            return name
        bits = "/".join(f"{bits} {compute}" for bits, compute in sorted(used.kernels))
        return f"{name}, {bits}, KV {used.kv_bits}"


def _coder_factors(seconds: Values, frame: Values, elements: Values) -> TwoFactors:
    """Of a frame and of its elements; of both together where a profile knows one of them alone."""
    if (frame > 0).all() and (elements > 0).all():
        return two_factors(seconds, frame, elements)
    ratio = median_ratio(seconds, frame + elements)
    return TwoFactors(ratio, ratio)


def predicted_peak_bytes(profile: DeviceProfile, item: MeasuredGeneration) -> float:
    """The peak that `profile` predicts for a process that has run this generation alone."""
    return edge_memory(profile, at_length(item)).total_bytes


def at_length(item: MeasuredGeneration) -> Plan:
    """The generation's plan, as if it had been made for just so many tokens."""
    tokens = min(item.prompt_tokens + item.num_tokens, item.plan.max_tokens)
    return replace(item.plan, max_tokens=tokens)
