"""`splitpoint doctor`: what is installed, what works, what to fix."""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import typer
from rich.table import Table

from hwprofiles.errors import ProviderError
from hwprofiles.providers.packages import clash_remedy, installed_packages
from hwprofiles.providers.table import CPU
from splitpoint.views.screen import open_console

PACKAGES_OF_SIDE = {
    "edge": (
        "numpy",
        "onnxruntime",
        "grpcio",
        "protobuf",
        "tokenizers",
        "jinja2",
        "prompt_toolkit",
    ),
    "api": ("starlette", "uvicorn"),
    "cloud": (
        "torch",
        "transformers",
        "safetensors",
        "grpcio-health-checking",
        "grpcio-reflection",
        "prometheus-client",
        "llguidance",
    ),
    "build": ("onnx", "onnx-ir", "optimum", "gguf", "accelerate"),
    "simulate": ("simpy", "matplotlib"),
}
DOCTOR_WIDTH = 576  # of the rows that a missing kernel is timed on


class Check(NamedTuple):
    """One line of the report. `fix` is empty when there is nothing to do."""

    what: str
    found: str
    fix: str = ""


def doctor() -> None:
    """Look at this installation. Exit status 1 when the edge side cannot work."""
    checks = [
        Check("python", platform.python_version(), _python_fix()),
        *(check for side in PACKAGES_OF_SIDE for check in _package_checks(side)),
        _check("front kernels", _try_front_kernels, "pip install 'splitpoint[edge]'"),
        _check("16-bit fronts", _wide_fronts, "pip install 'splitpoint[edge]'"),
        *_provider_checks(),
        _check("loopback", _try_loopback, "a firewall or proxy blocks 127.0.0.1"),
        _check("codec round trip", _try_codec, "pip install 'splitpoint[edge]'"),
        _codec_kernel(),
        _cloud_kernel(),
        Check("CUDA", _cuda()),
        Check("energy sensor", _energy_sensor()),
    ]
    table = Table(title="splitpoint doctor", title_justify="left")
    for column in ("check", "found", "to fix"):
        table.add_column(column)
    for check in checks:
        table.add_row(check.what, check.found, check.fix)
    open_console().print(table)
    required = ("python", "front kernels", "loopback", "codec round trip")
    broken = [check for check in checks if check.fix and check.what in required]
    if broken:
        raise typer.Exit(1)


def _python_fix() -> str:
    return "" if (3, 11) <= sys.version_info < (3, 14) else "use Python 3.11 to 3.13"


def _package_checks(side: str) -> list[Check]:
    checks = []
    for name in PACKAGES_OF_SIDE[side]:
        if name == "onnxruntime":
            checks.append(_onnxruntime_check(f"{side}: {name}"))
            continue
        try:
            checks.append(Check(f"{side}: {name}", version(name)))
        except PackageNotFoundError:
            checks.append(Check(f"{side}: {name}", "missing", f"pip install 'splitpoint[{side}]'"))
    return checks


def _onnxruntime_check(what: str) -> Check:
    """Any of the packages that bring it, but only one."""
    found = installed_packages()
    if not found:
        return Check(what, "missing", "pip install 'splitpoint[edge]'")
    text = ", ".join(
        number if name == "onnxruntime" else f"{name} {number}" for name, number in found.items()
    )
    return Check(what, text, clash_remedy(found))


def _check(what: str, attempt: Callable[[], str], fix: str) -> Check:
    try:
        return Check(what, attempt())
    except Exception as error:  # whatever is broken here is what the user came to learn
        return Check(what, f"fails: {type(error).__name__}: {error}", fix)


def _try_front_kernels() -> str:
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())


def _provider_checks() -> list[Check]:
    """What each execution provider beside the CPU's runs of a front; none without ONNX Runtime."""
    if find_spec("onnxruntime") is None:
        return []
    from hwprofiles.profiler.provider_probe import parts_run, parts_text
    from hwprofiles.providers.sessions import available_providers

    checks = []
    for provider in available_providers():
        if provider is CPU:
            continue
        what = f"provider {provider.name}"
        try:
            parts = parts_run(provider)
        except ProviderError as error:
            checks.append(Check(what, str(error), "the CPU runs the front meanwhile"))
            continue
        text = f"runs {parts_text(parts, 'provider') or 'nothing'}"
        if left := parts_text(parts, "cpu"):
            text += f"; leaves to the CPU {left}"
        if missing := parts_text(parts, "nobody"):
            text += f"; this onnxruntime is too old for {missing}"
        checks.append(Check(what, text))
    return checks


def _wide_fronts() -> str:
    from hwprofiles.profiler.half_probe import computes_halves

    if computes_halves():
        return "computed in 16 bits: 2 bytes a weight"
    return "widened to 32 bits at load: 4 bytes a weight (no 16-bit kernels here)"


def _try_loopback() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address, timeout=2):
            return f"a connection to 127.0.0.1:{address[1]} works"


def _try_codec() -> str:
    import numpy as np

    from codec.ladder import Ladder

    rows = np.linspace(-1, 1, 32, dtype=np.float32).reshape(2, 16)
    ids = np.array([0, 1], dtype=np.int64)
    ladder = Ladder.lossless(16)
    restored = ladder.decode(ladder.encode("lossless", rows, ids), num_rows=2, token_ids=ids)
    if not np.array_equal(restored, rows):
        raise ValueError("lossless is not lossless here")
    return "exact"


def _codec_kernel() -> Check:
    from codec.kernel.library import is_compiled
    from codec.kernel.remedy import remedy

    if is_compiled():
        return Check("codec kernel", "compiled")
    from codec.bench import synthetic_ladder
    from codec.levels.calibrated_kind import CALIBRATED
    from codec.slow_path import row_seconds

    ladder, level = synthetic_ladder(DOCTOR_WIDTH), CALIBRATED.name
    encode_s, decode_s = row_seconds(ladder, level)
    found = (
        f"none, numpy does its work: a row of {DOCTOR_WIDTH} takes {1e3 * encode_s:.3g} ms to "
        f"encode and {1e3 * decode_s:.3g} ms to decode ({level})"
    )
    return Check("codec kernel", found, remedy())


def _cloud_kernel() -> Check:
    what = "8-bit server kernel"
    if find_spec("torch") is None:
        return Check(what, "torch is not installed")
    from cloud.kernel import library as native

    kernel = native.load()
    if kernel is not None:
        return Check(what, f"compiled, {kernel.name}")
    return Check(what, "none: torch runs 8-bit layers, slower", native.why_torch_runs())


def _energy_sensor() -> str:
    from hwprofiles.sensors.registry import energy_sensor

    sensor = energy_sensor()
    return "none that can be read" if sensor is None else f"{sensor.name} ({sensor.covers})"


def _cuda() -> str:
    if find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if not torch.cuda.is_available():
        return "none: the cloud side runs on the CPU"
    return f"{torch.cuda.get_device_name(0)}"
