"""Compiles the two kernels as plain shared libraries and names wheels; pyproject.toml has the rest.

The kernels include no header of Python and ctypes opens them. So a C compiler is enough, a cross
compiler does too, and one wheel of a platform serves every Python: its tag is py3-none-PLATFORM,
not an abi3 tag, because nothing of Python's ABI is used.

Environment variables: CC and CFLAGS as usual (CC may have several words); SPLITPOINT_PLATFORM, the
platform tag of the wheel; SPLITPOINT_KERNELS=needed, where a kernel that does not compile is an
error. Without it such a kernel is left out, and numpy or torch does its work.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FALLBACK_COMPILERS = ("cc", "gcc", "clang")


class BuildKernels(build_ext):
    """One compiler command for each kernel, without Python's headers and libraries."""

    def build_extension(self, ext: Extension) -> None:
        if sys.platform == "win32":
            super().build_extension(ext)
            return
        path = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        command = [*compiler(), *ext.extra_compile_args, *shlex.split(os.getenv("CFLAGS", ""))]
        command += ["-shared", "-fPIC", *ext.sources, "-o", path]
        self.announce(f"compiling: {shlex.join(command)}", level=2)
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            if os.getenv("SPLITPOINT_KERNELS") == "needed":
                raise SystemExit(f"{ext.name} did not compile: {error}") from error
            raise CompileError(f"{ext.name} did not compile: {error}") from error

    def get_ext_filename(self, fullname: str) -> str:
        """The same name on every Unix: another system's tag would hide a cross-built library."""
        if sys.platform == "win32":
            return super().get_ext_filename(fullname)
        return os.path.join(*fullname.split(".")) + ".abi3.so"


class TagWheel(bdist_wheel):
    """py3-none-PLATFORM: the libraries depend on the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", os.getenv("SPLITPOINT_PLATFORM") or platform


def compiler() -> list[str]:
    """CC, or the compiler that Python was built with, or any that is there."""
    if os.getenv("CC"):
        return shlex.split(os.environ["CC"])
    words = shlex.split(sysconfig.get_config_var("CC") or "")
    names = [*words[:1], *FALLBACK_COMPILERS]
    return [next((name for name in names if shutil.which(name)), names[-1])]


setup(cmdclass={"build_ext": BuildKernels, "bdist_wheel": TagWheel})
