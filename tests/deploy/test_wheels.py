"""What each machine installs from a wheel: its own job works there, and its size is README's.

Slow, and it asks a package index. It runs with SPLITPOINT_WHEELS=1.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ModelBench
from tests.deploy.dockerfile import ROOT
from tests.tiny_models import make_tiny_model

pytestmark = pytest.mark.skipif(
    "SPLITPOINT_WHEELS" not in os.environ,
    reason="installs every extra from an index, about 10 minutes: SPLITPOINT_WHEELS=1 runs it",
)
# CPU torch where the index of PyTorch cannot be reached: SPLITPOINT_TORCH="torch==2.13.0".
TORCH = os.environ.get("SPLITPOINT_TORCH", "torch --index-url https://download.pytorch.org/whl/cpu")
MB = 1e6
BLOCK = 512  # bytes of what st_blocks counts
TOLERANCE = 0.15  # of a size: wheels of dependencies grow


class Machine:
    """A virtual environment with one extra of the wheel in it, and nothing of this checkout."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        self._folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if extra in ("cloud", "build"):
            self.pip("install", *shlex.split(TORCH))
        self.pip("install", f"{wheel}[{extra}]")

    def pip(self, *arguments: str) -> None:
        # A checkout on the path would count as installed.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run(
            [self._bin / "pip", "-q", *arguments],
            check=True,
            timeout=900,
            env=env,
            cwd=self._folder,
        )

    @property
    def _bin(self) -> Path:
        return self._folder / "bin"

    @property
    def megabytes(self) -> float:
        """What its site-packages take on the disk, pip included."""
        (packages,) = self._folder.glob("lib/python*/site-packages")
        return sum(path.lstat().st_blocks * BLOCK for path in packages.rglob("*")) / MB

    def run(self, *arguments: object) -> str:
        """A splitpoint command's stdout; it runs in an empty folder and must succeed."""
        with self.started(*arguments) as process:
            out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, out
        return out

    @contextmanager
    def started(self, *arguments: object) -> Iterator[subprocess.Popen[str]]:
        """A splitpoint command while it runs."""
        there = self._folder / "empty"
        there.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [str(self._bin / "splitpoint"), *map(str, arguments)],
            cwd=there,
            env={"PATH": "/usr/bin:/bin", "HOME": str(there)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()
                process.wait(30)

    def listening(self, process: subprocess.Popen[str]) -> str:
        """HOST:PORT, once a server has said it."""
        assert process.stdout is not None
        return process.stdout.readline().split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (found,) = out.glob("*.whl")
    assert len(list(out.glob("*.tar.gz"))) == 1
    return found


def machine(tmp_path: Path, wheel: Path, extra: str) -> Machine:
    made = Machine(tmp_path / "venv", wheel, extra)
    measured = made.megabytes
    print(f"{extra}: {measured:.0f} MB")  # noqa: T201
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (said,) = re.findall(rf"`pip install '\.\[{extra}\]'` \| ([\d,]+) MB", text)
    assert measured == pytest.approx(float(said.replace(",", "")), rel=TOLERANCE)
    return made


def test_a_device_answers_without_torch(tmp_path: Path, wheel: Path, bench: ModelBench) -> None:
    device = machine(tmp_path, wheel, "edge")
    whole = bench.edge_bundle(bench.num_layers)
    assert device.run("run", whole, "--prompt", "hello", "--max-new-tokens", 4)
    device.run("doctor")
    assert not list((tmp_path / "venv").glob("lib/python*/site-packages/torch"))


def test_a_device_serves_the_local_api(tmp_path: Path, wheel: Path, bench: ModelBench) -> None:
    device = machine(tmp_path, wheel, "edge,api")
    whole = bench.edge_bundle(bench.num_layers)
    with device.started("api", whole, "--listen", "127.0.0.1:0") as process:
        url = f"http://{device.listening(process)}/health"
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200


def test_a_server_serves_with_its_compiled_layers(
    tmp_path: Path, wheel: Path, bench: ModelBench
) -> None:
    server = machine(tmp_path, wheel, "cloud")
    bundle = bench.cloud_bundle()
    with server.started("serve", bundle, "--listen", "127.0.0.1:0") as process:
        assert server.listening(process).startswith("127.0.0.1:")
    # Without the edge's packages the doctor's status is 1.
    with server.started("doctor") as process:
        told, _ = process.communicate(timeout=60)
    assert re.search("8-bit server kernel .*compiled", told)


def test_a_build_machine_builds(tmp_path: Path, wheel: Path) -> None:
    builder = machine(tmp_path, wheel, "build")
    out = tmp_path / "bundle"
    make_tiny_model("llama", tmp_path / "model")
    builder.run(
        "build", "--model", tmp_path / "model", "--split", 2, "--no-calibrate", "--out", out
    )
    assert (out / "manifest.json").is_file()


def test_a_machine_that_simulates_writes_a_report(tmp_path: Path, wheel: Path) -> None:
    desk = machine(tmp_path, wheel, "simulate")
    scenario = ROOT / "examples/scenarios/office-lan.yaml"
    out = tmp_path / "report"
    desk.run("simulate", "--scenario", scenario, "--duration", 5, "--out", out)
    assert (out / "report.html").is_file()
