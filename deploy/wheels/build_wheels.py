"""Builds the source archive and one wheel a platform, and checks what it built.

    python deploy/wheels/build_wheels.py --out dist [--only linux-aarch64 ...]

`ziglang` compiles the two C kernels for every platform (requirements.txt beside this file). All
wheels are built from the unpacked source archive, so it is complete. Each library is checked for
its processor, for the oldest system that it asks for, and for all names that its caller needs. A
wheel that fails a check ends the run with one line.
"""

from __future__ import annotations

import argparse
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS = ("codec/kernel/_kernel.abi3.so", "cloud/kernel/_kernel.abi3.so")
GLIBC = (2, 28)


@dataclass(frozen=True)
class Target:
    """A platform: the compiler's name for it, the wheel's tag and further compiler flags."""

    triple: str
    tag: str
    flags: str = ""


TARGETS = {
    "linux-x86_64": Target(
        "x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64", "-s -mprefer-vector-width=512"
    ),
    "linux-aarch64": Target("aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64", "-s"),
    "macos-arm64": Target("aarch64-macos.13.0", "macosx_13_0_arm64"),
    "macos-x86_64": Target("x86_64-macos.13.0", "macosx_13_0_x86_64"),
}
# e_machine of ELF (elf.h) and cputype of Mach-O (mach/machine.h)
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
MACH_CPUS = {0x01000007: "x86_64", 0x0100000C: "arm64"}
LC_BUILD_VERSION, LC_CODE_SIGNATURE = 0x32, 0x1D


def main() -> None:
    """Build, check, and print one line a file."""
    parser = argparse.ArgumentParser(description="Build the source archive and the wheels.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--only", nargs="*", choices=sorted(TARGETS), default=sorted(TARGETS))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    sdist = build(ROOT, asked.out, "--sdist")
    made = [sdist]
    for name in asked.only:
        target = TARGETS[name]
        with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
            with tarfile.open(sdist) as archive:
                archive.extractall(folder, filter="data")
            (tree,) = Path(folder).iterdir()
            wheel = build(tree, asked.out, "--wheel", target)
        check_libraries(wheel, name)
        made.append(wheel)
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, made))
    for path in made:
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


def build(tree: Path, out: Path, what: str, target: Target | None = None) -> Path:
    """The file that `python -m build` leaves in `out`."""
    env = dict(os.environ)
    if target is not None:
        env["CC"] = f"{sys.executable} -m ziglang cc -target {target.triple}"
        env["CFLAGS"] = target.flags
        env["SPLITPOINT_PLATFORM"] = target.tag
        env["SPLITPOINT_KERNELS"] = "needed"
    command = (sys.executable, "-m", "build", what, "--no-isolation", "--outdir", str(out))
    told = run(*command, str(tree), env=env)
    names = re.findall(r"splitpoint-\S+\.(?:whl|tar\.gz)", told)
    return out / names[-1]


def run(*command: str, env: dict[str, str] | None = None) -> str:
    """What the command printed; SystemExit with its last lines where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise SystemExit(f"{' '.join(command[:4])} failed:\n{last}")
    return done.stdout + done.stderr


def check_libraries(wheel: Path, name: str) -> None:
    """SystemExit unless both kernels are there, for this platform and no newer system."""
    processor = name.partition("-")[2]
    with zipfile.ZipFile(wheel) as archive:
        for kernel in KERNELS:
            if kernel not in archive.namelist():
                raise SystemExit(f"{wheel.name} holds no {kernel}")
            library = archive.read(kernel)
            found = elf_machine(library) if name.startswith("linux") else mach_cpu(library)
            if found != processor:
                raise SystemExit(f"{wheel.name}: {kernel} is for {found}, not {processor}")
    if name.startswith("linux"):
        told = run(sys.executable, "-m", "auditwheel", "show", str(wheel))
        tags = re.findall(r'"manylinux_(\d+)_(\d+)_' + processor + '"', told)
        if not tags or min((int(a), int(b)) for a, b in tags) > GLIBC:
            raise SystemExit(f"{wheel.name} needs more than glibc 2.28:\n{told}")


def elf_machine(library: bytes) -> str:
    """The processor of a little-endian 64-bit ELF file."""
    if library[:6] != b"\x7fELF\x02\x01":
        return "no 64-bit ELF file"
    (machine,) = struct.unpack_from("<H", library, 18)
    return ELF_MACHINES.get(machine, f"machine {machine}")


def mach_cpu(library: bytes) -> str:
    """The processor of a 64-bit Mach-O file that macOS 13 would load: signed where Arm needs it."""
    magic, cpu, _, _, num_commands = struct.unpack_from("<IIIII", library, 0)
    if magic != 0xFEEDFACF:
        return "no 64-bit Mach-O file"
    at, oldest, signed = 32, None, False
    for _ in range(num_commands):
        command, size = struct.unpack_from("<II", library, at)
        if command == LC_BUILD_VERSION:
            _, version = struct.unpack_from("<II", library, at + 8)
            oldest = (version >> 16, version >> 8 & 0xFF)
        signed |= command == LC_CODE_SIGNATURE
        at += size
    processor = MACH_CPUS.get(cpu, f"cpu {cpu:#x}")
    if oldest is None or oldest > (13, 0):
        return f"{processor} of macOS {oldest}"
    return processor if signed or processor == "x86_64" else f"{processor} without a signature"


if __name__ == "__main__":
    main()
