"""`make sanitize`: both kernels under AddressSanitizer and UBSan, the thread pool under TSan.

It copies the packages into a temporary folder and builds the kernels there with the sanitizers.
Then it runs the kernels' own tests and the fuzz corpus against that copy. Any report, and any test
that fails, fails the run. Where gcc or libasan is not there, it prints one line and succeeds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PACKAGES: Final = (
    *("hwprofiles", "codec", "decoding", "protos", "optimizer", "edge", "cloud"),
    "tests",
)
TIMEOUT_S: Final = 600.0
_FLAGS: Final = (
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"),
    *("-fno-omit-frame-pointer", "-g1", "-O1", "-shared", "-fPIC"),
)
# Folder, and the flags that its kernel is built with elsewhere too (pyproject.toml).
_KERNELS: Final = (
    ("cloud/kernel", ("-Wno-psabi", "-pthread")),
    ("codec/kernel", ("-ffp-contract=off",)),
)
_CODEC_TESTS: Final = ("tests/codec/kernel", "tests/codec/entropy")
_CLOUD_TESTS: Final = (
    *("tests/cloud/kernel", "tests/cloud/attention/test_native.py"),
    "tests/cloud/engine/test_native_stack.py",
)
_PYTEST: Final = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# Of the codec only what calls the kernel: with sanitizers the numpy loops take most of the time.
_KERNEL_ONLY: Final = ("-k", "not False and not cheapest and not cloud", "--confcutdir=tests/codec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One command that must succeed without a report, once the check `after` has."""

    name: str
    command: tuple[str, ...]
    after: str | None = None


def main() -> int:
    """0: all is clean, or there are no sanitizers here."""
    missing = what_is_missing()
    if missing:
        say(f"sanitize: skipped, {missing}")
        return 0
    with tempfile.TemporaryDirectory(prefix="sanitize-") as folder:
        tree = Path(folder)
        copy_packages(tree)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            running: dict[str | None, Future[bool]] = {}
            for check in (*builds(), *checks(tree)):  # taken in this order: no build waits
                before = running.get(check.after)
                running[check.name] = pool.submit(run_after, before, check, tree)
            passed = [future.result() for future in running.values()]
    return 0 if all(passed) else 1


def what_is_missing() -> str | None:
    """Why the sanitizers cannot run here; None where they can."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if shutil.which("gcc") is None:
        return "gcc is not there"
    for name in ("libasan.so", "libubsan.so", "libtsan.so"):
        if not Path(runtime(name)).is_file():
            return f"gcc has no {name}"
    return None


def runtime(name: str) -> str:
    """Where gcc has a sanitizer's library; the bare name where it has none."""
    asked = subprocess.run(
        ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
    )
    return asked.stdout.strip()


def copy_packages(tree: Path) -> None:
    """The packages and their tests, without compiled files."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tree)


def builds() -> list[Check]:
    """The commands that compile the kernels and the thread pool's driver; the slow one first."""
    kernels = [
        Check(
            name=f"build {folder}",
            command=(
                *("gcc", *_FLAGS, *flags, f"{folder}/kernel.c"),
                *("-o", f"{folder}/_kernel.abi3.so"),
            ),
        )
        for folder, flags in _KERNELS
    ]
    driver = ("-fsanitize=thread", "-g", "-O1", "-pthread", "tests/sanitize/races.c", "-o", "races")
    return [*kernels, Check(name="build the thread pool", command=("gcc", *driver))]


def checks(tree: Path) -> list[Check]:
    """Tests and corpora; what waits for the slow build comes last."""
    python = sys.executable
    plugin = ("-p", "tests.sanitize.each_instruction_set")
    codec, cloud = "build codec/kernel", "build cloud/kernel"
    return [
        Check(
            name="codec tests",
            command=(python, *_PYTEST, *_KERNEL_ONLY, *_CODEC_TESTS),
            after=codec,
        ),
        Check(name="fuzz codec", command=(python, "tests/sanitize/fuzz_codec.py"), after=codec),
        Check(name="thread pool", command=(str(tree / "races"),), after="build the thread pool"),
        Check(
            name="cloud tests",
            command=(python, *_PYTEST, *plugin, *_CLOUD_TESTS),
            after=cloud,
        ),
        Check(name="fuzz cloud", command=(python, "tests/sanitize/fuzz_layers.py"), after=cloud),
    ]


def run_after(before: Future[bool] | None, check: Check, tree: Path) -> bool:
    """`run`, unless the check that it needs has failed."""
    return (before is None or before.result()) and run(check, tree)


def run(check: Check, tree: Path) -> bool:
    """Run one command in the copy; print its output and the sanitizers' reports if it fails."""
    begun_s = time.monotonic()
    reports = tree / "reports" / check.name.replace(" ", "-").replace(",", "")
    reports.mkdir(parents=True)
    # pytest swallows what a process wrote before it was aborted, so reports go to files.
    env = os.environ | {
        "PYTHONPATH": str(tree),
        "ASAN_OPTIONS": f"detect_leaks=0:log_path={reports / 'asan'}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports / 'ubsan'}",
        "TSAN_OPTIONS": f"log_path={reports / 'tsan'}",
    }
    if check.command[0] == sys.executable:
        env["LD_PRELOAD"] = runtime("libasan.so")
    try:
        done = subprocess.run(
            check.command,
            cwd=tree,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, output = -1, f"it ran longer than {TIMEOUT_S:.0f} s"
    written = [path.read_text(errors="replace") for path in sorted(reports.iterdir())]
    is_clean = code == 0 and not written
    taken_s = time.monotonic() - begun_s
    say(f"sanitize: {check.name}: {'clean' if is_clean else 'FAILED'} ({taken_s:.0f} s)")
    if not is_clean:
        say("\n".join([output, *written]))
    return is_clean


def say(text: str) -> None:
    """One line for the user, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
