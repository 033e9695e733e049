"""A forked program is a process like any other: output, variables, folder, signals and status."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.warm_python import SPLITPOINT, WarmProcess, run

SAYS = """
import os, sys
print(sys.argv[1], os.getcwd(), sorted(os.environ), "torch" in sys.modules)
print("told", file=sys.stderr)
sys.exit(3)
"""


def test_it_has_its_own_folder_variables_output_and_status(tmp_path: Path) -> None:
    done = run(SAYS, ["word"], cwd=tmp_path, env={"HOME": "/"})
    assert done.stdout == f"word {tmp_path} ['HOME'] True\n"
    assert done.stderr == "told\n"
    assert done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_signal_ends_it_and_is_its_status(number: signal.Signals) -> None:
    process = WarmProcess(
        "print('up', flush=True); import time; time.sleep(60)", [], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert process.pid != os.getpid()
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(number)
    assert process.wait(30) == -number
    process.stdout.close()


def test_an_error_is_told_and_a_command_is_refused_in_one_line() -> None:
    done = run("raise ValueError('no such thing')", [])
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: no such thing")
    refused = run(SPLITPOINT, ["run", "no-such-bundle"])
    assert refused.returncode != 0
    assert refused.stderr.count("\n") == 1
