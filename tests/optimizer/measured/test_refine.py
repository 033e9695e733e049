"""Refining: every rate that was wrong comes back, and nothing is learned from other machines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.planning.wrong_profile import WRONG, times_faster
from hwprofiles.profiles.catalog import device_to_yaml, load_device
from hwprofiles.profiles.device import CODEC_KERNEL, DeviceProfile, Figure
from hwprofiles.profiles.scaled import FACTORS, REFINED
from optimizer.errors import MeasurementError
from optimizer.measured.energy_figures import ENERGY_UNITS
from optimizer.measured.predict import (
    ENCODE,
    FRONT,
    MEMORY,
    UNITS,
    measured_figures,
    predicted_figures,
)
from optimizer.measured.record import Measured
from optimizer.measured.refine import Refinement, refine_profile
from optimizer.measured.robust import two_factors
from tests.optimizer.measured import hours
from tests.optimizer.measured.hours import CLOUD_MACHINE, EDGE


def refined(profile: DeviceProfile, records: list[Measured], **options: bool) -> Refinement:
    return refine_profile(profile, records, name="new", command="refine", **options)


def test_an_hour_brings_every_figure_of_a_wrong_profile_back_within_ten_percent() -> None:
    wrong_edge = times_faster(EDGE, WRONG)
    wrong_cloud = times_faster(CLOUD_MACHINE, WRONG)
    log = [*hours.generations(120), *hours.servings(60)]  # half a minute each; a minute
    edge, cloud = refined(wrong_edge, log).profile, refined(wrong_cloud, log).profile
    asked = hours.generations(8, seed=9)  # none of which was learned from
    moved = 0
    for item in asked:
        truth = predicted_figures(item, hours.basis(EDGE, CLOUD_MACHINE))
        wrong = predicted_figures(item, hours.basis(wrong_edge, wrong_cloud))
        found = predicted_figures(item, hours.basis(edge, cloud))
        assert set(found) == set(UNITS) - set(ENERGY_UNITS)  # there is no sensor
        for figure, value in truth.items():
            assert found[figure].p50 == pytest.approx(value.p50, rel=0.10), figure
            moved += abs(wrong[figure].p50 / value.p50 - 1) > 0.10
    assert moved >= 5 * len(asked)  # most figures were wrong before


@pytest.mark.parametrize("factor", [WRONG, 1 / WRONG])
def test_every_factor_that_was_observed_is_found(factor: float) -> None:
    log = [*hours.generations(60), *hours.servings(60)]
    front = refined(times_faster(EDGE, factor), log)
    back = refined(times_faster(CLOUD_MACHINE, factor), log)
    for item in (*front.factors, *back.factors):
        assert item.ratio == pytest.approx(factor, rel=0.10), item
    assert {item.factor for item in front.factors} == {
        "front, one row",
        "front, one row, attention",
        "front, prompts",
        "encode calibrated",
        "encode calibrated, elements",
        "process base",
    }
    assert {item.factor for item in back.factors} == {
        "back, one row",
        "back, one row, attention",
        "back, several rows",
        "decode calibrated",
        "decode calibrated, elements",
        "sampling",
    }


@pytest.mark.parametrize(
    "field", ["decode", "batch", "attention", "codec", "layers"], ids=lambda name: f"{name} alone"
)
def test_one_wrong_part_alone_is_corrected_in_the_figures(field: str) -> None:
    """A part that steps share with others is not told apart, but what a plan uses is right."""
    wrong = _wrong_in(field)
    found = refined(wrong, [*hours.generations(60)]).profile
    for item in hours.generations(8, seed=5):
        truth = predicted_figures(item, hours.basis(EDGE, CLOUD_MACHINE))
        better = predicted_figures(item, hours.basis(found, CLOUD_MACHINE))
        for figure, value in truth.items():
            found_s = better[figure].p50
            assert found_s == pytest.approx(value.p50, rel=0.10), (figure, item.prompt_tokens)


def _wrong_in(field: str) -> DeviceProfile:
    faster = times_faster(EDGE, WRONG)
    if field == "attention":
        return replace(EDGE, attention=faster.attention)
    if field == "codec":
        return replace(EDGE, codec=faster.codec)
    pairs = zip(EDGE.kernels, faster.kernels, strict=True)
    kernels = tuple(replace(true, **{field: getattr(other, field)}) for true, other in pairs)
    return replace(EDGE, kernels=kernels)


def test_a_refined_profile_knows_what_it_is_still_off_by() -> None:
    log = [*hours.generations(120), *hours.servings(60)]
    edge, cloud = refined(EDGE, log).profile, refined(CLOUD_MACHINE, log).profile
    for device in (edge, cloud):
        assert device.errors is not None
        assert device.errors.of_runs
        assert device.errors.one_row is not None
        assert device.errors.many_rows is not None
    assert edge.errors is not None
    assert edge.errors.memory is not None
    assert edge.errors.message is None  # nothing of it was observed: the default holds
    inside = []
    basis = hours.basis(edge, cloud)
    for item in hours.generations(60, seed=11):  # none of which was learned from
        measured = measured_figures(item)
        predicted = predicted_figures(item, basis)
        inside += [
            predicted[name].covers(measured[name])
            for name in (FRONT, ENCODE, MEMORY)
            if measured.get(name, 0.0) > 0
        ]
    assert sum(inside) / len(inside) >= 0.85


def test_a_right_profile_stays_as_it_is() -> None:
    for item in refined(EDGE, [*hours.generations(60)]).factors:
        assert item.ratio == pytest.approx(1.0, abs=0.03), item


def test_what_was_not_observed_is_left_alone() -> None:
    wrong = times_faster(EDGE, WRONG)
    found = refined(wrong, [*hours.generations(30)]).profile
    for before, after in zip(wrong.kernels, found.kernels, strict=True):
        used = (before.weight_bits, before.compute) == (4, "int8")
        assert (before == after) is not used
    assert found.overheads.message_s == wrong.overheads.message_s
    assert [kernel.kv_bits for kernel in found.attention if kernel.source == REFINED] == [32]


def test_few_observations_change_nothing_and_say_so() -> None:
    with pytest.raises(MeasurementError, match="observed 5 times in 2 generations"):
        refined(EDGE, [replace(item, steps=item.steps[:1]) for item in hours.generations(2)])
    few = hours.generations(40)
    one_prompt = [
        replace(item, steps=tuple(step for step in item.steps if step.phase == "decode"))
        for item in few[1:]
    ]
    found = refined(
        times_faster(EDGE, WRONG), [*one_prompt, replace(few[0], steps=few[0].steps[:2])]
    )
    prompts = next(item for item in found.factors if item.factor == "front, prompts")
    assert prompts.ratio is None
    assert prompts.observations == 2


def test_records_of_other_machines_are_left_out_and_counted() -> None:
    mine = hours.generations(20)
    others = [
        replace(mine[0], machine=hours.machine_of(EDGE, processor="a phone")),
        replace(mine[1], machine=hours.machine_of(EDGE, num_threads=1)),
        replace(mine[2], machine=hours.machine_of(EDGE, engine="onnxruntime-openvino")),
        replace(mine[3], machine=hours.machine_of(EDGE, num_threads=1)),
        *hours.servings(2),
    ]
    alone = refined(EDGE, [*mine])
    found = refined(EDGE, [*others, *mine])
    assert found.factors == alone.factors
    assert found.num_used == 20
    assert found.left_out == {
        "of the processor a phone, not AMD EPYC": 1,
        "with 1 threads, not 2": 2,
        "with onnxruntime-openvino, not onnxruntime-cpu": 1,
        "of the server's side": 2,
    }
    with pytest.raises(MeasurementError, match="no record is of the machine of local-epyc-2core"):
        refined(EDGE, others)


def test_a_codec_in_numpy_says_nothing_about_the_compiled_one() -> None:
    versions = {**EDGE.platform.versions, CODEC_KERNEL: "compiled"}
    known = replace(EDGE, platform=replace(EDGE.platform, versions=versions))
    slow = [
        replace(item, machine=replace(item.machine, codec_kernel="numpy"))
        for item in hours.generations(6)
    ]
    with pytest.raises(MeasurementError, match="numpy kernel, not compiled"):
        refined(known, [*slow])


def test_a_data_sheet_takes_the_name_of_the_real_processor() -> None:
    named = [
        replace(item, machine=hours.machine_of(EDGE, processor="Cortex-A76"))
        for item in hours.generations(10)
    ]
    found = refined(EDGE, [*named], any_processor=True)
    assert found.profile.platform.processor == "Cortex-A76"
    with pytest.raises(MeasurementError, match="several processors"):
        refined(EDGE, [*named, *hours.generations(1)], any_processor=True)


def test_a_factor_beyond_reason_is_refused() -> None:
    absurd = times_faster(EDGE, 200.0)
    with pytest.raises(MeasurementError, match="another machine"):
        refined(absurd, [*hours.generations(10)])


def test_the_new_profile_says_where_it_comes_from(tmp_path) -> None:
    found = refined(times_faster(EDGE, WRONG), [*hours.generations(30)]).profile
    path = tmp_path / "new.yaml"
    path.write_text(device_to_yaml(found))
    assert load_device(path) == found
    source = found.sources[REFINED]
    assert source.kind == "derived"
    assert source.date == hours.DAY
    assert "refined from 30 generations" in source.note
    assert "front, prompts x 1.5" in found.sources[FACTORS].note
    assert found.name == "new"


def test_the_link_is_reported_and_changes_nothing() -> None:
    found = refined(EDGE, [*hours.generations(30)])
    assert found.link is not None
    assert found.link.rtt_s == pytest.approx(0.02, rel=0.1)
    assert found.link.up_bytes_per_s == pytest.approx(2.5e6, rel=0.1)


def test_the_speed_that_lasts_counts() -> None:
    """Measured answers ran at the lasting speed, which the profile predicts with its share."""
    from hwprofiles.profiles.device import Power
    from hwprofiles.profiles.power import SustainedLoad

    load = SustainedLoad(
        source=next(iter(EDGE.sources)),
        duration_s=300.0,
        peak_steps_per_s=100.0,
        sustained_steps_per_s=50.0,
    )
    tired = replace(EDGE, power=Power(sustained=load, idle_watts=_watts(), load_watts=_watts()))
    half = refined(tired, [*hours.generations(20)])
    ratio = next(item.ratio for item in half.factors if item.factor == "front, one row")
    assert ratio == pytest.approx(0.5, abs=0.03)


def _watts() -> Figure:
    return Figure(value=5.0, source=next(iter(EDGE.sources)))


def test_two_factors_by_hand() -> None:
    first = np.full(33, 2.0)
    second = np.arange(1.0, 34.0)
    both = 3 * first + 1.5 * second
    assert two_factors(both, first, second) == pytest.approx((3.0, 1.5))
    # Alike shares cannot be told apart: one factor for both.
    assert two_factors(np.full(33, 6.0), first, np.full(33, 1.0)) == pytest.approx((2.0, 2.0))
    # A wild value in ten moves nothing.
    wild = both.copy()
    wild[::10] *= 10
    assert two_factors(wild, first, second) == pytest.approx((3.0, 1.5), rel=0.02)
    # Few samples, and a part that would be 50 times off beside a right one, are no evidence.
    for few in (both[:20], first + 50 * second):
        found = two_factors(few, first[: len(few)], second[: len(few)])
        assert found.first == found.second
