"""The profiler's measuring tools, on a fake clock and fake system files; one real run is slow."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from hwprofiles.profiler import front_pass, kernel_runs, system_facts
from hwprofiles.profiler.front_profiler import FULL, QUICK, _thread_warnings, profile_device
from hwprofiles.profiler.front_stack import Effort
from hwprofiles.profiler.kernel_graphs import DecoderLayers
from hwprofiles.profiler.kernel_runs import KernelSettings
from hwprofiles.profiler.parts import median_of
from hwprofiles.profiler.parts import quality_warnings as _warnings
from hwprofiles.profiler.sustained import MachineSigns
from hwprofiles.profiler.timing import Timing, measure, measure_paused
from hwprofiles.profiles.catalog import device_to_yaml, load_device
from hwprofiles.profiles.checks import check_kernel
from hwprofiles.profiles.compare import key_figures
from hwprofiles.profiles.device import BatchCurve, BatchPoint
from hwprofiles.sensors.heat import HeatReading


def test_measure_takes_the_median_and_the_spread_of_its_repeats() -> None:
    durations = [9.0, 1.0, 1.0, 1.0, 1.0, 6.0]  # the first call warms up and is not counted
    now = 0.0

    def call() -> None:
        nonlocal now
        now += durations.pop(0)

    timing = measure(call, budget_s=10.0, clock=lambda: now)
    assert timing.num_repeats == 5
    assert timing.seconds == 1.0
    assert timing.spread == pytest.approx(3.0)  # p10 = 1, p90 = 1 + 0.6 * 5 = 4


def test_a_pause_is_counted_by_what_the_step_after_it_takes() -> None:
    now, rested = 0.0, False

    def call() -> None:
        nonlocal now, rested
        now += 3.0 if rested else 2.0
        rested = False

    def sleep(seconds: float) -> None:
        nonlocal now, rested
        now += seconds
        rested = True

    assert measure(call, budget_s=0.0, clock=lambda: now).seconds == pytest.approx(2.0)
    found = measure_paused(call, num_repeats=5, clock=lambda: now, sleep=sleep)
    assert found.seconds == pytest.approx(3.0)
    assert found.num_repeats == 5


def test_measure_loses_patience_with_long_calls_after_three() -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 2.0

    timing = measure(call, budget_s=1.0, clock=lambda: now)
    assert timing.num_repeats == 3


def test_measure_goes_on_until_its_budget_is_spent() -> None:
    now = 0.0

    def call() -> None:
        nonlocal now
        now += 0.1

    assert measure(call, budget_s=0.95, clock=lambda: now).num_repeats == 10


def test_usable_memory_obeys_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_facts, "memory_limit_bytes", lambda: 12345)
    assert system_facts.usable_memory_bytes() == 12345


def test_usable_memory_obeys_rlimits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_facts, "memory_limit_bytes", lambda: None)
    monkeypatch.setattr("resource.getrlimit", lambda _which: (777, 777))
    assert system_facts.usable_memory_bytes() == 777


def test_a_noisy_or_throttling_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_facts, "throttle_events", lambda: 0)
    assert not [w for w in _warnings([1.0, 1.0], [0.02, 0.03]) if "battery" not in w]
    assert any("noisy" in warning for warning in _warnings([1.0, 1.0], [0.4, 0.5]))
    assert any("throttling" in warning for warning in _warnings([1.0, 1.3], [0.02]))
    monkeypatch.setattr(system_facts, "throttle_events", lambda: 7)
    assert any("throttled 7 times" in warning for warning in _warnings([1.0], [0.02]))
    assert any("on the way" in warning for warning in _warnings([1.0, 1.5, 1.0], [0.02]))


def test_passes_merge_into_medians_part_by_part() -> None:
    def point(rate: float) -> BatchCurve:
        return BatchCurve(source="bench", points=(BatchPoint(num_rows=2, flops_per_s=rate),))

    merged = median_of([point(1.0), point(9.0), point(2.0)])
    assert merged == point(2.0)
    other = BatchCurve(source="bench", points=(BatchPoint(num_rows=3, flops_per_s=1.0),))
    with pytest.raises(ValueError, match="merge"):
        median_of([point(1.0), other])


def test_fewer_threads_are_advised_only_when_clearly_faster() -> None:
    assert list(_thread_warnings({1: 1.0, 2: 0.6, 4: 0.62})) == []
    (warning,) = _thread_warnings({1: 1.0, 2: 0.6, 4: 0.9})
    assert "run the edge with 2" in warning


@pytest.mark.parametrize("sustained_s", [0.0, 0.01])
def test_a_tiny_run_gives_a_whole_valid_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sustained_s: float
) -> None:
    pytest.importorskip("onnxruntime")
    tiny = Effort(
        num_passes=2,
        budget_s=0.0,
        working_sets=(1e5, 4e5),
        rows=(2, 8, 64),
        brief_exact=sustained_s > 0,
        stack_rows=(1, 16),
        attention=((1, (16, 64)), (8, (8, 32))),
    )
    monkeypatch.setattr("hwprofiles.profiler.front_profiler.QUICK", tiny)
    monkeypatch.setattr("hwprofiles.profiler.front_pass.SHAPES", ((64, 128), (128, 384)))
    monkeypatch.setattr("hwprofiles.profiler.front_pass.BATCH_SHAPES", ((64, 128),))
    monkeypatch.setattr("hwprofiles.profiler.front_pass.BATCH_SETS", (1e5, 4e5))
    monkeypatch.setattr("hwprofiles.profiler.front_pass.ATTENTION_LAYERS", (1, 2, 3))
    monkeypatch.setattr("hwprofiles.profiler.front_pass.BEYOND_CACHE_BYTES", 4e5)
    small = DecoderLayers(
        **front_pass.ATTENTION, width=128, inner=256, num_layers=2, weight_bits=4, compute="int8"
    )
    for module in ("front_pass", "front_profiler"):
        monkeypatch.setattr(f"hwprofiles.profiler.{module}.TYPICAL_LAYERS", small)
    monkeypatch.setattr("hwprofiles.profiler.front_stack.STACKS", ((64, 128, 2, 1),))
    monkeypatch.setattr("hwprofiles.profiler.front_stack.STACK_SETS", (1e4, 2e5))
    monkeypatch.setattr(system_facts, "storage_read_rate", lambda *_: 1e8)
    monkeypatch.setattr(system_facts, "memory_bandwidth", lambda *_: (1e9, STEADY))
    monkeypatch.setattr(front_pass, "computes_halves", lambda _provider: True)
    shares = []
    profile = profile_device(
        name="tiny",
        quick=True,
        progress=lambda share, _what: shares.append(share),
        sustained_s=sustained_s,
        signs=MachineSigns(look=HeatReading, throttle_events=lambda: 0),
    )
    assert profile.measured
    assert profile.sources["bench"].date
    assert profile.platform.provider == "cpu"
    assert {(k.weight_bits, k.compute) for k in profile.kernels} >= {
        (4, "int8"),
        (32, "fp32"),
        (16, "fp16"),
    }
    assert all(point.flops_per_s > 0 for k in profile.kernels for point in k.batch.points)
    assert {k.kv_bits for k in profile.attention} == {8, 16, 32}
    # Two layers of wide weights are more than the larger set: one depth is enough for them.
    exact = 0 if sustained_s else 4
    assert [len(k.layers) for k in profile.kernels] == [4, exact, 4, 0, 2, 2]
    near, far = profile.kernels[0].layers[:2], profile.kernels[0].layers[2:]
    assert near[0].working_set_bytes < far[0].working_set_bytes
    assert [point.num_rows for point in near] == [point.num_rows for point in far] == [1, 16]
    assert near[1].seconds == far[1].seconds  # of many rows, arithmetic hides reading
    batch = profile.kernel(32).batch.points
    assert sorted({point.num_rows for point in batch}) == [2, 8, 64]
    assert len({point.working_set_bytes for point in batch}) == 2
    assert 20e6 < profile.memory.runtime_base_bytes.value < 400e6
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    if not sustained_s:
        assert profile.power is None
        assert profile.sustained_share == 1.0
        return
    assert profile.power is not None
    load = profile.power.sustained
    assert load is not None
    assert 0 < profile.sustained_share == load.share <= 1.0
    path = tmp_path / "tiny.yaml"
    path.write_text(device_to_yaml(profile))
    assert load_device(path) == profile
    assert "speed that lasts" in {row.figure for row in key_figures(profile)}


STEADY = Timing(seconds=1.0, spread=0.0, num_repeats=5)


def test_a_container_without_sys_is_not_on_battery(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sys() -> None:
        raise FileNotFoundError("/sys/class/power_supply")

    monkeypatch.setattr("psutil.sensors_battery", no_sys)
    assert not system_facts.runs_on_battery()
    assert not any("battery" in warning for warning in _warnings([1.0, 1.0], [0.0]))


def test_without_a_writable_folder_the_storage_rate_is_left_out(tmp_path: Path) -> None:
    assert system_facts.storage_read_rate(tmp_path / "nowhere", 1 << 20) is None


def test_a_process_base_counts_what_its_code_holds() -> None:
    with system_facts.begin_process_base("held = b'x' * 50_000_000\n") as child:
        found = child.result()
    assert 5e7 < found.num_bytes < 1.5e8
    assert found == child.result()


def test_a_process_base_that_fails_says_so_and_one_that_is_not_asked_ends() -> None:
    with (
        system_facts.begin_process_base("raise SystemExit(3)\n") as child,
        pytest.raises(subprocess.CalledProcessError),
    ):
        child.result()
    with system_facts.begin_process_base("import time; time.sleep(60)\n") as child:
        pass
    assert child._child.returncode == -signal.SIGKILL


@pytest.mark.parametrize("effort", [QUICK, FULL], ids=["quick", "full"])
def test_every_effort_measures_something_of_every_kernel(
    monkeypatch: pytest.MonkeyPatch, effort: Effort
) -> None:
    """With the sizes that are really measured, and nothing timed."""

    def timed(*, num_rows: tuple[int, ...], **_given: object) -> list[Timing]:
        return [STEADY] * len(num_rows)

    monkeypatch.setattr(kernel_runs, "time_matmul", timed)
    monkeypatch.setattr(kernel_runs, "time_lookup", lambda **_given: STEADY)
    for bits, compute in front_pass.PRECISIONS:
        kernel = front_pass._kernel(bits, compute, KernelSettings(1), effort, [])
        check_kernel(f"{bits} bits, {compute}", kernel)
        assert {point.num_rows for point in kernel.batch.points} >= {*effort.rows}
