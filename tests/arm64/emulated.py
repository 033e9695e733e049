"""Runs the edge's, the codec's and the wire's tests on an emulated 64-bit Arm Debian.

    make test-arm64
    python -m tests.arm64.emulated [--folder DIR] [--only doctor answer ...]

It makes the system in DIR (default work/arm64; about 1.2 GB, once) with debootstrap and
qemu-user-static, installs this checkout's wheel in it without a compiler, and runs in it: `doctor`,
the tests that need no torch, one row through the codec with and without the kernel, and an answer
of an Arm edge through a server of this machine, whose tokens must be the same as an edge's here.

Needs root and those two packages; where that cannot be had it prints one line and succeeds. It is
an emulation of an Armv8.2 processor (Cortex-A76): its times say nothing about a real device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TEST_PACKAGES = ("pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.120", "h2>=4.1")
TESTED = ("tests/codec", "tests/protos", "tests/edge")
# A test with one of these needs a build machine's packages, or clients of the API.
ELSEWHERE = (
    "tests.conftest",
    "tests.tiny_models",
    "import torch",
    "tests.tool_model",
    "from benchmarks",
)
NOT_THERE = ("tests/edge/api",)
# The link emulator's sockets close under qemu; why is not known.
NOT_UNDER_QEMU = (
    "tests/edge/net/test_link_probe.py::test_the_probe_crosses_a_real_server_and_an_emulated_link"
)
PROMPT = ("--prompt", "The capital of France is", "--max-new-tokens", "8", "--level", "lossless")
SPLITPOINT = (sys.executable, "-m", "splitpoint.cli")
FAILURES = ("FAILED", "ERROR", "E  ")
LEAST_SPEED_UP = 10.0  # of the kernel over numpy, both emulated


def main() -> int:
    """0 where everything passed or nothing can be run here, 1 otherwise."""
    parser = argparse.ArgumentParser(description="Test on an emulated 64-bit Arm system.")
    parser.add_argument("--folder", type=Path, default=ROOT / "work/arm64")
    checks = {"doctor": check_doctor, "speed": check_speed, "answer": check_answer}
    checks |= {"server-kernel": check_server_kernel, "tests": run_tests, "halves": check_halves}
    parser.add_argument("--only", nargs="*", choices=sorted(checks), default=sorted(checks))
    asked = parser.parse_args()
    reason = what_is_missing()
    if reason is not None:
        print(f"test-arm64: skipped, {reason}")
        return 0
    system = ArmSystem(asked.folder)
    system.make()
    wheel = build_wheel(asked.folder)
    failed = []
    with system.mounted():
        system.install(wheel)
        for name, check in checks.items():
            if name in asked.only:
                told = check(system)
                print(f"test-arm64: {name}: {told or 'passed'}", flush=True)
                if told.startswith("FAILED"):
                    failed.append(name)
    return 1 if failed else 0


def what_is_missing() -> str | None:
    """Why nothing can be run here; None where it can."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if os.geteuid() != 0:
        return "it needs root, for debootstrap and chroot"
    for tool in ("debootstrap", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            return f"{tool} is not there: apt-get install debootstrap qemu-user-static"
    registered = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
    if not registered.exists():
        mount = ("mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc")
        subprocess.run(mount, check=False, capture_output=True)
        enable = ("update-binfmts", "--enable", "qemu-aarch64")
        with contextlib.suppress(OSError):
            subprocess.run(enable, check=False, capture_output=True)
    return None if registered.exists() else "the kernel runs no foreign programs (binfmt_misc)"


class ArmSystem:
    """A Debian in `folder`/root, and a virtual environment in it at /venv."""

    def __init__(self, folder: Path) -> None:
        self._root = folder.resolve() / "root"

    def make(self) -> None:
        """The system itself, once."""
        if (self._root / "usr/bin/python3").exists():
            return
        print("test-arm64: making the system, minutes", flush=True)
        self._root.parent.mkdir(parents=True, exist_ok=True)
        command = ("debootstrap", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}")
        ran(*command, "bookworm", str(self._root), MIRROR)

    @contextlib.contextmanager
    def mounted(self) -> Iterator[None]:
        """With /proc and /dev. Not /sys: there ONNX Runtime would find this machine's CPUs."""
        places = {"proc": ("-t", "proc", "proc"), "dev": ("--rbind", "/dev")}
        made = []
        for name, how in places.items():
            if not os.path.ismount(self._root / name):
                ran("mount", *how, str(self._root / name))
                made.append(name)
        try:
            yield
        finally:
            for name in reversed(made):
                ran("umount", "-l", str(self._root / name))

    def install(self, wheel: Path) -> None:
        """The wheel with its extra for a device, from wheels alone: there is no compiler."""
        for path in ("/etc/resolv.conf", "/etc/hosts", str(CERTIFICATES)):
            if Path(path).exists():
                shutil.copy(path, self._root / path.lstrip("/"))
        shutil.copy(wheel, self._root / "tmp")
        if not (self._root / "venv").exists():
            self.run("python3 -m venv /venv")
        compilers = self.run("which cc gcc clang || true").split()
        if compilers:
            raise SystemExit(f"a compiler is in the emulated system: {compilers}")
        pip = f"PIP_CERT={CERTIFICATES} /venv/bin/pip install -q --only-binary :all:"
        self.run(f"{pip} '/tmp/{wheel.name}[edge]' {' '.join(map(repr, TEST_PACKAGES))}")
        self.run(f"{pip} --force-reinstall --no-deps /tmp/{wheel.name}")
        target = self._root / "src"
        shutil.rmtree(target, ignore_errors=True)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tests", target / "tests", ignore=ignored)
        shutil.copytree(ROOT / "deploy/wheels", target / "deploy/wheels")
        shutil.copy(ROOT / "pyproject.toml", target)

    def put(self, folder: Path, name: str) -> None:
        """Copy a folder into the system's /tmp."""
        shutil.rmtree(self._root / "tmp" / name, ignore_errors=True)
        shutil.copytree(folder, self._root / "tmp" / name)

    def run(self, script: str) -> str:
        """stdout of a shell script in the system; SystemExit where it fails."""
        return ran("chroot", str(self._root), "sh", "-c", f"export QEMU_CPU=cortex-a76; {script}")


def ran(*command: str) -> str:
    """stdout of a command; SystemExit with its last lines where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{last}")
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """This checkout's wheel for 64-bit Arm."""
    venv = folder / "wheel-venv"
    if not (venv / "bin/auditwheel").exists():
        ran(sys.executable, "-m", "venv", str(venv))
        requirements = str(ROOT / "deploy/wheels/requirements.txt")
        ran(f"{venv}/bin/pip", "install", "-q", "-r", requirements)
    script = str(ROOT / "deploy/wheels/build_wheels.py")
    out = folder / "dist"
    shutil.rmtree(out, ignore_errors=True)
    ran(f"{venv}/bin/python", script, "--out", str(out), "--only", "linux-aarch64")
    (wheel,) = out.glob("*.whl")
    return wheel


def check_doctor(system: ArmSystem) -> str:
    """`doctor` succeeds, and the codec's kernel is there."""
    told = system.run("cd /tmp && COLUMNS=200 /venv/bin/splitpoint doctor")
    return "" if re.search(r"codec kernel\W+compiled", told) else "FAILED: no codec kernel"


def check_speed(system: ArmSystem) -> str:
    """One row of 576 values through the kernel and through numpy, both emulated."""
    found = json.loads(system.run("cd /src && /venv/bin/python tests/arm64/row_times.py"))
    times = found["numpy_s"] / found["kernel_s"]
    word = "" if times >= LEAST_SPEED_UP else "FAILED: "
    return (
        f"{word}encoding a row takes {1e3 * found['kernel_s']:.3g} ms with the kernel and "
        f"{1e3 * found['numpy_s']:.3g} ms in numpy, {times:.0f} times (both emulated)"
    )


def check_server_kernel(system: ArmSystem) -> str:
    """The server's kernel for 8-bit layers, with SDOT, against numpy."""
    library = "/venv/lib/python3*/site-packages/cloud/kernel/_kernel.abi3.so"
    script = f"cd /src && /venv/bin/python tests/arm64/server_kernel.py {library}"
    told = system.run(f"{script} || echo FAILED").strip()
    return " ".join(reversed(told.splitlines())) if "FAILED" in told else told


def check_answer(system: ArmSystem) -> str:
    """The same tokens from an edge there and an edge here, through one server here."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        model, made = str(Path(folder) / "model"), ("--split", "2", "--no-calibrate")
        make_bundle(bundle, model, *made, "--weights", "copy")
        system.put(bundle, "bundle")
        with served(bundle) as address:
            asked = ("--server", address, *PROMPT, "--json")
            here = json.loads(ran(*SPLITPOINT, "run", str(bundle), *asked))
            words = " ".join(map(repr, ("run", "/tmp/bundle", *asked)))
            there = json.loads(system.run(f"cd /tmp && /venv/bin/splitpoint {words} 2>/dev/null"))
    same = here["tokens"] == there["tokens"]
    return f"{len(here['tokens'])} equal tokens" if same else f"FAILED: {here} and {there}"


def check_halves(system: ArmSystem) -> str:
    """A front with 16-bit weights is computed in 16 bits, and its rows are the model's."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        made = ("--split", "2", "--front-bits", "16", "--no-calibrate")
        make_bundle(bundle, str(Path(folder) / "model"), *made)
        system.put(bundle, "half-bundle")
    script = "cd /src && /venv/bin/python tests/arm64/half_front.py /tmp/half-bundle"
    found = json.loads(system.run(f"{script} 2>/dev/null"))
    if found["arithmetic"] != "fp16":
        return f"FAILED: {found}"
    worst = 100 * max(found["row_errors"])
    return f"computed in 16 bits, rows at most {worst:.2g} % from the model's"


def make_bundle(bundle: Path, model: str, *options: str) -> None:
    """A bundle of a tiny model, which is made in the folder `model`."""
    code = "import sys, pathlib; from tests.tiny_models import make_tiny_model as make\n"
    ran(sys.executable, "-c", f"{code}make('llama', pathlib.Path(sys.argv[1]))", model)
    ran(*SPLITPOINT, "build", "--model", model, *options, "--out", str(bundle))


@contextlib.contextmanager
def served(bundle: Path) -> Iterator[str]:
    """HOST:PORT of a server of this machine; a system in a chroot shares the network."""
    command = (*SPLITPOINT, "serve", str(bundle), "--listen", "127.0.0.1:0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def run_tests(system: ArmSystem) -> str:
    """The tests of `TESTED` that need no torch, folder by folder."""
    summaries = []
    for folder in TESTED:
        ignored = [f"--ignore={path}" for path in ignored_files(ROOT / folder)]
        options = f"-q -p no:cacheprovider --confcutdir {folder} {' '.join(ignored)}"
        options += f" --deselect {NOT_UNDER_QEMU}"
        tests = "cd /src && PYTHONPATH=/src /venv/bin/python -m pytest --timeout 900"
        told = system.run(f"{tests} {options} {folder} || true")
        summary = told.strip().splitlines()[-1]
        print(f"test-arm64: {folder}: {summary}", flush=True)
        if "failed" in summary or "error" in summary or "passed" not in summary:
            print("\n".join(line for line in told.splitlines() if line.startswith(FAILURES)))
            summaries.append(f"FAILED: {folder}: {summary}")
    return "; ".join(summaries)


def ignored_files(folder: Path, marks: Sequence[str] = ELSEWHERE) -> list[str]:
    """Test files that need another machine's packages, relative to the checkout."""
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(folder.rglob("test_*.py"))
        if any(mark in path.read_text(encoding="utf-8") for mark in marks)
    ]
    return [*found, *(name for name in NOT_THERE if (ROOT / name).is_relative_to(folder))]


if __name__ == "__main__":
    sys.exit(main())
