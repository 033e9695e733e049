"""What a device is told on the command line: limits, deadlines, CPUs, and where it may listen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.errors import EdgeError
from edge.generation.factory import GenerationFactory
from edge.generation.report import Completion
from hwprofiles.providers.table import PROVIDERS
from splitpoint.chat import answering
from splitpoint.cli import main
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer
from tests.splitpoint.test_cli import failing


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.edge_bundle(2)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main(["run", *map(str, arguments), "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_limit_that_is_too_small_is_one_line_with_every_part(
    capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    common = ("run", bundle, "--server", "127.0.0.1:1", "--prompt", "x")
    status, line = failing(capsys, *common, "--memory-limit", "20MiB")
    assert status == 1
    for part in ("of the 20.0 MiB allowed", "runtime", "weights", "KV cache", "workspace"):
        assert part in line


def test_a_limit_and_a_fixed_chunk_change_no_token(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    common = (bundle, "--server", server.address, "--prompt", "once upon a time " * 4)
    free = run_json(capsys, *common, "--max-new-tokens", 12)
    limited = run_json(capsys, *common, "--max-new-tokens", 12, "--memory-limit", "16GiB")
    chunked = run_json(capsys, *common, "--max-new-tokens", 12, "--prefill-chunk", 5)
    assert free["tokens"] == limited["tokens"] == chunked["tokens"]
    assert free["peak_memory_bytes"] > 0


def test_power_changes_no_token(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    server: RunningServer,
) -> None:
    monkeypatch.setattr("os.nice", lambda _step: 0)  # the tests keep their priority
    common = (bundle, "--server", server.address, "--prompt", "once upon a time " * 4)
    more = ("--max-new-tokens", 24, "--ignore-eos", "--power")
    reports = [run_json(capsys, *common, *more, name) for name in ("full", "balanced", "low")]
    assert reports[0]["tokens"] == reports[1]["tokens"] == reports[2]["tokens"]
    assert reports[2]["drafts"]["frames_ahead"] == 0


def test_low_power_and_spinning_exclude_each_other(
    capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    common = ("run", bundle, "--server", "127.0.0.1:1", "--prompt", "x", "--spin")
    status, line = failing(capsys, *common, "--power", "low")
    assert (status, "--spin" in line) == (2, True)


@pytest.mark.parametrize("output", [(), ("--json",)])
def test_an_answer_that_a_lost_server_cut_is_a_failure(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    server: RunningServer,
    output: tuple[str, ...],
) -> None:
    whole = answering.show_answer

    def cut(*answer: Any, **options: Any) -> Completion:
        return replace(whole(*answer, **options), finish_reason="server_lost")

    monkeypatch.setattr(answering, "show_answer", cut)
    common = ("run", str(bundle), "--server", server.address, "--prompt", "abc")
    assert main([*common, "--max-new-tokens", "2", *output]) == 1
    said = capsys.readouterr()
    assert "server_lost" in (said.out if output else said.err)


def test_a_deadline_that_holds_changes_nothing(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    common = (bundle, "--server", server.address, "--prompt", "abc", "--max-new-tokens", 8)
    free = run_json(capsys, *common)
    held = run_json(capsys, *common, "--deadline-tbt", 30)
    assert held["tokens"] == free["tokens"]
    assert held["finish_reason"] == free["finish_reason"]


def test_a_deadline_that_nothing_holds_ends_the_answer_and_says_so(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    """A step across two processes' threads takes more than ten microseconds on any machine."""
    from edge.client import EdgeClient
    from edge.generation.completion import CompletionRequest

    with EdgeClient(bundle, server.address) as client:
        request = CompletionRequest(max_new_tokens=150, deadline_tbt_s=1e-5, draft="off")
        completion = client.complete("abc", request)
    assert completion.finish_reason == "deadline"
    assert "of the last 24 steps took longer" in completion.finish_detail
    assert 24 <= len(completion.token_ids) < 40


def test_an_answer_beyond_the_plan_shifts_when_it_may(
    capsys: pytest.CaptureFixture[str], bundle: Path, server: RunningServer
) -> None:
    common = (bundle, "--server", server.address, "--prompt", "abc", "--ignore-eos")
    status, line = failing(capsys, "run", *common, "--max-new-tokens", 300)
    assert status == 1
    assert "ask for at most" in line
    report = run_json(capsys, *common, "--max-new-tokens", 300, "--context", "shift")
    assert len(report["tokens"]) == 300
    assert report["context_shifts"] == 2


@pytest.mark.parametrize(
    ("option", "value", "status", "reason"),
    [
        ("--context", "slide", 2, "refuse, shift"),
        ("--deadline-tbt", "0", 2, "deadline-tbt"),
        ("--memory-limit", "much", 2, "not a size"),
        ("--affinity", "x", 1, "not a list of CPUs"),
        ("--threads", "0", 2, "threads"),
        ("--power", "turbo", 2, "low, balanced, full"),
    ],
)
def test_nonsense_is_refused(
    capsys: pytest.CaptureFixture[str],
    bundle: Path,
    option: str,
    value: str,
    status: int,
    reason: str,
) -> None:
    got, line = failing(
        capsys, "run", bundle, "--server", "127.0.0.1:1", "--prompt", "x", option, value
    )
    assert (got, reason in line) == (status, True), line


@pytest.mark.parametrize("listen", ["0.0.0.0:8000", "[::]:8000"])
def test_the_api_is_not_open_to_the_network_by_accident(
    capsys: pytest.CaptureFixture[str], bundle: Path, listen: str
) -> None:
    status, line = failing(capsys, "api", bundle, "--server", "h:1", "--listen", listen)
    assert status == 1
    assert "refusing to listen" in line
    status, line = failing(capsys, "api", bundle, "--server", "h:1", "--listen", "nowhere")
    assert (status, "HOST:PORT" in line) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "no-bundle", "--prompt", "x", "--server", "gpu"),
        ("run", "no-bundle", "--prompt", "x", "--server", "gpu:1", "--server", "http://gpu:1"),
        ("api", "no-bundle", "--server", "gpu:0"),
        ("profile", "link", "--server", "gpu:99999"),
        ("profile", "link", "--server", "me@gpu:1"),
        (
            *("emulate-link", "--to", "gpu:0", "--rtt-ms", "1"),
            *("--up-mbps", "1", "--down-mbps", "1"),
        ),
    ],
)
def test_an_address_that_cannot_be_dialled_is_bad_usage_before_anything_loads(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    status, line = failing(capsys, *arguments)
    assert status == 2
    assert "--server" in line or "--to" in line
    assert "HOST:PORT" in line or "a port lies between 1 and 65535" in line


def test_a_short_time_to_recover_is_a_short_time_to_connect(
    capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def stop(*_: object, **options: Any) -> None:
        seen.append(options["retry_policy"])
        raise EdgeError("seen enough")

    monkeypatch.setattr("edge.client.EdgeClient", stop)
    for within in ("2", "0", "100"):
        failing(
            capsys, "run", bundle, "--server", "h:1", "--prompt", "x", "--recover-within", within
        )
    assert [(policy.recover_s, policy.connect_s) for policy in seen] == [
        (2.0, 2.0),
        (0.0, 1.0),
        (100.0, 10.0),
    ]


def test_a_provider_that_is_not_here_is_bad_usage_with_its_remedy(
    capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    common = ("run", bundle, "--server", "127.0.0.1:1", "--prompt", "x")
    status, line = failing(capsys, *common, "--provider", "xnnpack")
    assert status == 2
    assert "--provider xnnpack: this onnxruntime" in line
    assert "build ONNX Runtime with --use_xnnpack" in line
    status, line = failing(capsys, *common, "--provider", "cudaa")
    assert (status, "did you mean cuda" in line) == (2, True)


@pytest.mark.filterwarnings("ignore:Duplicate provider")
def test_what_runs_the_front_is_said_once_and_in_json(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    server: RunningServer,
) -> None:
    """The CPU's kernels under another name. Rows that may depend on the cut are cut as planned."""
    fake = replace(PROVIDERS["openvino"], runtime_name="CPUExecutionProvider", options=_no_options)
    monkeypatch.setitem(PROVIDERS, "openvino", fake)
    adapts: list[bool] = []

    def factory(**parts: Any) -> GenerationFactory:
        adapts.append(parts["adaptive_chunks"])
        return GenerationFactory(**parts)

    monkeypatch.setattr("edge.client.GenerationFactory", factory)
    common = (bundle, "--server", server.address, "--prompt", "once upon", "--max-new-tokens", 8)
    expected = run_json(capsys, *common)
    assert expected["front"] == {"provider": "cpu", "not_taken": []}
    assert main(["run", *map(str, common), "--provider", "openvino", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["tokens"] == expected["tokens"]
    assert report["front"]["provider"] == "openvino"
    assert report["front"]["rows_depend_on_cut"]
    assert captured.err.count("openvino runs") == 1
    assert adapts == [True, False]


def _no_options(threads: int) -> dict[str, str]:
    return {}


def test_doctor_finds_two_packages_of_onnxruntime_and_what_a_provider_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    both = {"onnxruntime": "1.32.0", "onnxruntime-openvino": "1.24.1"}
    monkeypatch.setattr("splitpoint.commands.doctor.installed_packages", lambda: both)
    openvino = PROVIDERS["openvino"]
    monkeypatch.setattr(
        "hwprofiles.providers.sessions.available_providers", lambda: (PROVIDERS["cpu"], openvino)
    )
    parts = {"4-bit products": "provider", "the embedding": "cpu", "attention": "nobody"}
    monkeypatch.setattr("hwprofiles.profiler.provider_probe.parts_run", lambda provider: parts)
    assert main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1.32.0, onnxruntime-openvino 1.24.1" in text
    assert "pip uninstall onnxruntime onnxruntime-openvino, then install only one" in text
    assert (
        "runs 4-bit products; leaves to the CPU the embedding; this onnxruntime is too old for "
        "attention" in text
    )
