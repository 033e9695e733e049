"""Profiling a server: on kernels whose times are a known formula, and once on the real engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hwprofiles.profiler import back_profiler, back_stack, system_facts
from hwprofiles.profiler.back_profiler import QUICK, profile_server
from hwprofiles.profiler.back_stack import BackEffort, back_bytes
from hwprofiles.profiler.measured_backends import BackStack, Call, SessionLoad, StackShape
from hwprofiles.profiler.parts import codec_speeds, codec_version, codec_warnings
from hwprofiles.profiler.timing import Timing
from hwprofiles.profiles.engines import Engine
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.cloud import SessionRows, back_step_s

DISPATCH_S, BYTES_PER_S, FLOPS_PER_S = 2e-6, 2e10, 2e11
STEP_S, SESSION_S, LAYER_S, ROW_S, COMPANY_S = 1e-4, 2e-6, 1e-4, 1e-6, 9e-6
TOKEN_S = 3e-8
PAUSED_S = 2e-4  # what a frame takes longer after a pause


def matrix_seconds(num_weights: float, num_outputs: float, bits: int, num_rows: int) -> float:
    work = 2 * num_rows * num_weights / FLOPS_PER_S if num_rows > 1 else 0.0
    return DISPATCH_S + work + back_bytes(num_weights, num_outputs, bits) / BYTES_PER_S


class FormulaStack:
    """An engine whose step takes what a formula says; a call returns its seconds."""

    def __init__(self, shape: StackShape, num_layers: int, bits: int) -> None:
        self.shape, self.num_layers, self.bits = shape, num_layers, bits

    def step(self, sessions: Sequence[SessionLoad]) -> Call:
        shape, rows = self.shape, sum(load.num_rows for load in sessions)
        heads = shape.num_heads * shape.head_dim
        packed = heads + 2 * shape.num_kv_heads * shape.head_dim
        sizes = (
            (shape.width * packed, packed), (heads * shape.width, shape.width),
            (2 * shape.width * shape.inner, 2 * shape.inner),
            (shape.inner * shape.width, shape.width),
        )  # fmt: skip
        layer = sum(matrix_seconds(*size, self.bits, rows) for size in sizes)
        layer += LAYER_S + ROW_S * (rows - 1) + COMPANY_S * (len(sessions) - 1)
        layer += TOKEN_S * shape.width / 1024 * sum(
            load.num_rows * (load.position + load.num_rows) for load in sessions
        )  # fmt: skip
        seconds = STEP_S + SESSION_S * len(sessions) + self.num_layers * layer
        head = shape.width * shape.vocab_size
        seconds += matrix_seconds(head, shape.vocab_size, self.bits, len(sessions))
        return lambda: seconds


class FormulaKernels:
    engine: Engine = "torch-cpu"
    accelerator: str | None = None
    num_threads = 2
    weight_bits: tuple[int, ...] = (8, 32)
    kv_bits = 32
    runs_int8 = True

    def versions(self) -> dict[str, str]:
        return {"torch": "0"}

    def memory_bytes(self) -> tuple[int, int] | None:
        return 10**9, 9 * 10**8

    def base_code(self) -> str:
        return "import json\n"

    def copy(self, num_bytes: int) -> Call:
        return lambda: 2 * num_bytes / BYTES_PER_S

    def matrices(
        self, *, width: int, inner: int, num_pairs: int, weight_bits: int
    ) -> Callable[[int], Call]:
        def with_rows(num_rows: int) -> Call:
            pair = [
                matrix_seconds(width * inner, out, weight_bits, num_rows) for out in (inner, width)
            ]
            if width == 64:  # the tiny ones show dispatch alone
                return lambda: 2 * num_pairs * DISPATCH_S
            return lambda: num_pairs * sum(pair)

        return with_rows

    def stack(self, shape: StackShape, *, num_layers: int, weight_bits: int) -> BackStack:
        return FormulaStack(shape, num_layers, weight_bits)

    def sample(self, vocab_size: int) -> Call:
        return lambda: 1e-9 * vocab_size


@pytest.fixture
def formula_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(call: Callable[[], float], **_given: object) -> Timing:
        return Timing(seconds=call(), spread=0.0, num_repeats=5)

    monkeypatch.setattr(back_profiler, "measure", measure)
    monkeypatch.setattr(back_stack, "measure", measure)
    monkeypatch.setattr(back_profiler, "message_s", lambda **_given: None)


GEOMETRY = ModelGeometry(
    architecture="x", num_layers=10, hidden_size=1024, num_heads=16, num_kv_heads=4, head_dim=64,
    intermediate_size=2816, vocab_size=512, context_length=4096, tied_embeddings=False,
)  # fmt: skip


@pytest.mark.usefixtures("formula_time")
@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize(
    "sessions",
    [
        [SessionRows(1, 16)],
        [SessionRows(1, 500)] * 2,
        [SessionRows(1, 16)] * 16,
        [SessionRows(1, 200)] * 40,
        [SessionRows(128, 0)],
        [SessionRows(1, 100)] * 3 + [SessionRows(64, 0)],
    ],
)
def test_a_profile_of_known_kernels_predicts_other_steps_of_them(
    bits: int, sessions: list[SessionRows]
) -> None:
    profile = profile_server(FormulaKernels(), name="formula", quick=True)
    predicted = back_step_s(
        profile, GEOMETRY, num_layers=9, back_bits=bits, kv_bits=32, sessions=sessions,
        num_logits=len(sessions),
    )  # fmt: skip
    shape = back_profiler.STACKS[-1]
    loads = [SessionLoad(*session) for session in sessions]
    assert predicted == pytest.approx(FormulaStack(shape, 9, bits).step(loads)(), rel=0.05)


@pytest.mark.usefixtures("formula_time")
def test_a_server_profile_says_whose_it_is_and_counts_the_accelerators_memory() -> None:
    profile = profile_server(FormulaKernels(), name="formula", quick=True)
    assert profile.roles == ("cloud",)
    assert profile.platform.engine == "torch-cpu"
    assert profile.memory.usable_bytes.value == 9e8
    assert profile.overheads.sample_s_per_logit is not None
    assert profile.overheads.sample_s_per_logit.value == pytest.approx(1e-9)
    assert profile.overheads.session_s is not None
    assert profile.overheads.session_s.value == pytest.approx(SESSION_S, rel=0.05)
    assert profile.overheads.step_s.value == pytest.approx(STEP_S, rel=0.05)


def test_the_servers_real_engine_gives_a_whole_valid_profile(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products, and others at work: threads would only wait
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    from cloud.engine.profiled_kernels import TorchKernels

    shape = StackShape(width=64, inner=96, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=32)
    tiny = BackEffort(
        num_passes=2, budget_s=0.0, working_sets=(1e5, 4e5), rows=(1, 2, 8),
        large_rows=(1, 2), sessions=(1, 3), prompts=(48,), layers=2, deep_bytes=3e5, long=64,
    )  # fmt: skip
    monkeypatch.setattr(back_profiler, "QUICK", tiny)
    monkeypatch.setattr(back_profiler, "SHAPES", ((64, 96),))
    monkeypatch.setattr(back_profiler, "LARGE_SHAPE", (128, 192))
    monkeypatch.setattr(back_profiler, "STACKS", (shape,))
    monkeypatch.setattr(back_profiler, "message_s", lambda **_given: None)
    monkeypatch.setattr(back_profiler, "MB", 1e4)
    shares: list[float] = []
    profile = profile_server(
        TorchKernels("cpu"), name="tiny", quick=True,
        progress=lambda share, _what: shares.append(share),
        base=system_facts.ProcessBase(123, 45),
    )  # fmt: skip
    assert profile.memory.runtime_base_bytes.value == 123
    assert {kernel.weight_bits for kernel in profile.kernels} == {8, 32}
    assert {len(kernel.layers) for kernel in profile.kernels} == {3, 6}  # 8 bits have two depths
    assert profile.attention_kernel(32).points[0].num_rows == 1
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_codec_speeds_split_a_frame_into_its_fixed_part_and_its_elements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Coder:
        kinds: tuple[str, ...] = ("lossless",)
        runs_in = "numpy"

        def coder(self, _kind: str, *, hidden_size: int, num_rows: int) -> tuple[Call, Call]:
            count = hidden_size * num_rows
            return lambda: 1e-4 + 2e-9 * count, lambda: 5e-5 + 1e-9 * count

    def measured(call: Callable[[], float], **_given: object) -> Timing:
        return Timing(seconds=call(), spread=0.0, num_repeats=5)

    def after_a_pause(call: Callable[[], float], **_given: object) -> Timing:
        return Timing(seconds=call() + PAUSED_S, spread=0.0, num_repeats=5)

    monkeypatch.setattr("hwprofiles.profiler.parts.measure", measured)
    monkeypatch.setattr("hwprofiles.profiler.parts.measure_paused", after_a_pause)
    speeds = codec_speeds(Coder(), 0.0)
    (told,) = codec_warnings(speeds, Coder())
    assert "timed in numpy" in told
    assert "0.301 ms" in told  # 1e-4 + PAUSED_S + 2e-9 * 576
    assert codec_version(Coder()) == {"codec_kernel": "numpy"}
    assert codec_version(None) == {}
    for speed in speeds:
        assert (speed.kind, speed.source) == ("lossless", "bench")
        seconds = (speed.encode_fixed_s, speed.encode_s_per_element)
        assert seconds == pytest.approx((1e-4 + PAUSED_S, 2e-9))
        seconds = (speed.decode_fixed_s, speed.decode_s_per_element)
        assert seconds == pytest.approx((5e-5 + PAUSED_S, 1e-9))


def test_quick_measures_a_part_of_what_full_does() -> None:
    full = back_profiler.FULL
    assert set(QUICK.sessions) <= set(full.sessions)
    assert max(full.sessions) == 64
    assert QUICK.num_passes < full.num_passes
