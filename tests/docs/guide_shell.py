"""Runs the commands of a guide as its reader would: in order, in a folder of its own.

A tiny seeded model stands in for the model that the guide names, free ports for its ports, and
this machine for its hosts. What costs minutes is cut short (`SHORTER`). Servers stay in the
background until the guide ends. What cannot run here (docker, ssh, systemctl) is only looked at.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from splitpoint.cli import main
from splitpoint.commands.choices import weight_types
from tests.docs.commands_page import tree
from tests.warm_python import SPLITPOINT, WarmProcess

ROOT: Final = Path(__file__).parents[2]
FENCE: Final = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
ADDRESS: Final = re.compile(r"(127\.0\.0\.1|0\.0\.0\.0|cloud\.example):(\d+)")
START_S: Final = 90.0
COMMAND_S: Final = 120.0

# The tiny model has four layers; the guides count thirty.
NUM_LAYERS: Final = 4
LAYERS: Final = {"8-12": "2", "10": "2", "12": "2", "20": "3", "30": "4"}
MODEL: Final = "models/smollm2"
PLACEHOLDERS: Final = {"MODEL": MODEL, "BUNDLE": "bundle"}
# What is added to a command so that it takes seconds.
SHORTER: Final[dict[str, tuple[str, ...]]] = {
    "run": ("--max-new-tokens", "6", "--ignore-eos"),
    "calibrate": ("--tokens", "256", "--no-certify"),
    "certify": ("--tokens", "256", "--window", "64"),
    "sensitivity": ("--tokens", "256", "--window", "64"),
    "simulate": ("--duration", "3", "--no-advice", "--processes", "1"),
    "bench server": ("--repeats", "2"),
    "profile link": ("--max-bytes", "1048576"),
    "profile device": ("--quick",),
    "train-draft": (
        *("--tokens", "4096", "--epochs", "1", "--blocks", "0"),
        *("--vocabulary", "64", "--inner", "32"),
    ),
    "train-draft --place cloud": ("--tokens", "4096", "--epochs", "1", "--vocabulary", "64"),
}
# Accepted by the parser, and not run: minutes, gigabytes, or a question on the terminal.
TOO_LONG: Final = ("demo",)
# Options that are about the whole process, which must then not be that of the tests.
ALONE: Final = ("--memory-limit", "--affinity", "--power")
# Where servers listen unless the guide says another place.
BACKGROUND: Final = {
    "serve": "127.0.0.1:50051",
    "api": "127.0.0.1:8000",
    "emulate-link": "127.0.0.1:0",
}
OF_A_CLUSTER: Final = ("--replicas", "--max-replicas", "--replica-target", "--replica-gpus")
RUN_BY_BASH: Final = (
    "openssl",
    "curl",
    "printf",
    "echo",
    "chmod",
    "cp",
    "mkdir",
    "for",
    "export",
    "ln",
)
# Programs that are not run: only the files and targets that they name are looked at.
LOOKED_AT: Final = (
    "apt",
    "docker",
    "git",
    "cd",
    "journalctl",
    "kill",
    "kubectl",
    "make",
    "nvidia-smi",
    "pkg",
    "proot-distro",
    "benchmarks/gpu_check.sh",
    "pip",
    ".venv/bin/pip",
    "python3",
    "rsync",
    "scp",
    "ssh",
    "sudo",
    "systemctl",
    "termux-wake-lock",
    "termux-wake-unlock",
)
_NAMED_FILE: Final = re.compile(r"(?<![\w/.])(?:deploy|benchmarks|examples|docs)/[\w./-]+\.\w+")
_EXTRAS: Final = re.compile(r"\.\[([\w,]+)\]")


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page in order: the language, and the text without indentation."""
    found = []
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        lines = text.splitlines()
        margin = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
        found.append((language, "\n".join(line[margin:] for line in lines)))
    return found


def commands_of(text: str) -> Iterator[str]:
    """The commands of a shell block: one a line, but for a backslash or an open quotation."""
    whole = ""
    for line in text.splitlines():
        whole = f"{whole}\n{line}" if whole else line
        if whole.endswith("\\"):
            continue
        with suppress(ValueError):  # an open quotation: the next line belongs to it
            if shlex.split(whole, comments=True):
                yield whole
            whole = ""
    assert not whole, f"a command without an end: {whole!r}"


def words_of(command: str) -> list[str]:
    """A command's words, without its comment."""
    return shlex.split(command.replace("\\\n", " "), comments=True)


def leaf_of(words: list[str]) -> tuple[str, list[str]]:
    """The subcommand that the words after `splitpoint` name, and what comes after it."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in tree():
            return name, words[length:]
    raise AssertionError(f"no command: splitpoint {' '.join(words)}")


def check_splitpoint(words: list[str]) -> None:
    """Let the command's own parser read the words. Raises its usage error."""
    name, arguments = leaf_of(words)
    command: Any = tree()[name]
    command.make_context(name, list(arguments))


def check_other(command: str) -> None:
    """The files, extras and make targets that a command names are there."""
    for name in _NAMED_FILE.findall(command):
        assert (ROOT / name).exists(), name
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extras in _EXTRAS.findall(command):
        for extra in extras.split(","):
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    words = words_of(command)
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words[1]


class GuideShell:
    """The folder of one guide, its ports and its servers."""

    def __init__(
        self, folder: Path, model: Path, build: Callable[[list[str], Path], None], port: Any
    ) -> None:
        """build: makes the bundle of `splitpoint build` with these words, in this folder.

        port: `port()` gives a port that is free.
        """
        self.folder = folder
        self.model = model
        self._build = build
        self._port = port
        self._ports: dict[str, int] = {}
        self._servers: list[WarmProcess] = []
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        self._environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def close(self) -> None:
        """Stop what runs in the background."""
        for server in reversed(self._servers):
            server.terminate()
        for server in self._servers:
            server.communicate(timeout=START_S)

    def use(self, port: str, actual: int) -> None:
        """The guide's `port` is this one from now on: a server is there already."""
        self._ports[port] = actual

    def here(self, text: str) -> str:
        """The text with this machine's addresses in place of the guide's."""

        def address(match: re.Match[str]) -> str:
            host = "localhost" if match[1] == "cloud.example" else "127.0.0.1"
            if match[2] == "0":
                return match[0]
            if match[2] not in self._ports:
                self._ports[match[2]] = self._port()
            return f"{host}:{self._ports[match[2]]}"

        return ADDRESS.sub(address, text).replace("cloud.example", "localhost")

    def run(self, command: str) -> str:
        """Run one command, or look at it. Returns what it wrote on stdout, where it ran."""
        words = words_of(self.here(command))
        if words[0] == "splitpoint":
            return self._splitpoint(words[1:])
        check_other(command)
        runs = words[0] in RUN_BY_BASH or words[:2] == ["python", "-c"]
        if runs and "sudo" not in words:
            return self._bash(self.here(command))
        known = runs or words[0] in LOOKED_AT or words[0] == "python"
        assert known, f"nobody knows {words[0]}: {command}"
        return ""

    def _splitpoint(self, words: list[str]) -> str:
        check_splitpoint(words)
        name, arguments = leaf_of(words)
        arguments = self._stand_ins(name, arguments)
        kind = f"{name} --place cloud" if "--place" in arguments else name
        words = [*name.split(), *arguments, *SHORTER.get(kind, ())]
        if name in TOO_LONG:
            return ""
        if name == "model fetch":
            shutil.copytree(self.model, self.folder / arguments[arguments.index("--out") + 1])
            return ""
        if name == "build":
            self._build(arguments, self.folder)
            return ""
        if name in BACKGROUND:
            place = () if "--listen" in words else ("--listen", self.here(BACKGROUND[name]))
            return self._serve([*words, *place])
        if name == "chat" or any(word in ALONE for word in arguments):
            program = shlex.join([sys.executable, "-m", "splitpoint", *words])
            return self._bash(f"echo /exit | {program}")
        if name == "profile device" and "cloud" in arguments:
            found = ROOT / "hwprofiles" / "devices" / "local-epyc-2core-cloud.yaml"
            shutil.copy(found, self.folder / arguments[arguments.index("--out") + 1])
            return ""
        assert main(words) == 0, f"splitpoint {shlex.join(words)}"
        return ""

    def _stand_ins(self, name: str, arguments: list[str]) -> list[str]:
        """The arguments for the tiny model on this machine."""
        found = [PLACEHOLDERS.get(word, word) for word in arguments]
        for index, word in enumerate(found[1:], 1):
            if found[index - 1] in ("--split", "--back-from"):
                found[index] = LAYERS.get(word, word)
            if found[index - 1] in ("--device", "--provider"):
                found[index] = "cpu" if word == "cuda" else word
        if name == "serve" and "--weights" in found:
            place = found.index("--weights")  # a CPU refuses it
            assert found[place + 1] in weight_types()
            del found[place : place + 2]
        if name == "serve":  # one server stands in for replicas: Ray takes a minute for them
            for option in [word for word in found if word in OF_A_CLUSTER]:
                place = found.index(option)
                del found[place : place + 2]
        if name == "plan" and MODEL in found and "--split" not in found:
            found += ["--split", "2"]  # so small a model would stay on the device
        return found

    def _serve(self, words: list[str]) -> str:
        """Start a server and wait until it says where it listens."""
        started = WarmProcess(
            SPLITPOINT, words, cwd=self.folder, env=self._environment, stdout=subprocess.PIPE
        )
        self._servers.append(started)
        assert started.stdout is not None
        line = (
            started.stdout.readline()
        )  # the test's own time limit ends a server that says nothing
        assert re.search(r":\d+$", line.strip()), f"splitpoint {shlex.join(words)}: {line!r}"
        return line

    def _bash(self, command: str) -> str:
        for far, near in LAYERS.items():
            command = command.replace(f"split-{far}.tables", f"split-{near}.tables")
            command = command.replace(f"tables_name({far})", f"tables_name({near})")
        done = subprocess.run(
            ["bash", "-ec", command.replace("curl ", "curl --fail --silent --show-error ")],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout
