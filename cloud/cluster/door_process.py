"""HAProxy as a child process: started, told what changes, and ended with whoever started it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloud.cluster.door_config import DoorFiles, door_config
from cloud.errors import StartError
from protos.addresses import Address

logger = logging.getLogger(__name__)

# Older ones replace the status of a call that is refused early by CANCELLED; seen with 2.6.12.
OLDEST: Final = (2, 8)
_START_S: Final = 5.0
_POLL_S: Final = 0.02
_TALK_S: Final = 2.0
_LINES_KEPT: Final = 100
# HAProxy's answers to commands that did what they say; others are reported.
_DONE: Final = re.compile(
    r"|(IP|port|no need) .*|Key not found\.|Name: HAProxy.*", re.DOTALL | re.IGNORECASE
)
_SET_PDEATHSIG: Final = 1  # PR_SET_PDEATHSIG of prctl(2)


class DoorProcess:
    """HAProxy in front of the replicas. Start it on a thread that lives as long as it should.

    Raises StartError where it cannot run or listen. binary: the program.
    """

    def __init__(
        self,
        binary: str,
        address: Address,
        *,
        num_slots: int,
        streams: int,
        certificate: bytes | None = None,
        client_ca: Path | None = None,
        replicas_ca: Path | None = None,
        behind_proxy: bool = False,
    ) -> None:
        """certificate: PEM of chain and key (None: plain text). Others as in DoorFiles and
        `door_config`."""
        _check_version(binary)
        self._folder = tempfile.TemporaryDirectory(prefix="splitpoint-door-")
        folder = Path(self._folder.name)
        pem = None
        if certificate is not None:
            pem = folder / "door.pem"
            pem.touch(mode=0o600)
            pem.write_bytes(certificate)
        self.files = DoorFiles(
            folder=folder, certificate=pem, replicas_ca=replicas_ca, client_ca=client_ca
        )
        self.files.map.write_text("", encoding="utf-8")
        text = door_config(
            address, self.files, num_slots=num_slots, streams=streams, behind_proxy=behind_proxy
        )
        self.files.config.write_text(text, encoding="utf-8")
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)
        self._process = subprocess.Popen(
            [binary, "-db", "-f", str(self.files.config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        # It writes a line for every change of a replica, and would stop at a full pipe.
        self._reader = threading.Thread(target=self._read_lines, name="haproxy", daemon=True)
        self._reader.start()
        try:
            self._wait_until_it_listens(address)
        except BaseException:
            self.stop()
            raise
        if pem is not None:  # it is read; nobody may find the key after a kill
            pem.unlink()

    def trouble(self) -> str | None:
        """Why it takes no streams; None: it works."""
        status = self._process.poll()
        return None if status is None else f"HAProxy ended with status {status}"

    def tell(self, commands: Sequence[str]) -> None:
        """Give it commands, each on its own. Raises OSError where it does not answer."""
        for command in commands:
            with socket.socket(socket.AF_UNIX) as talk:
                talk.settimeout(_TALK_S)
                talk.connect(str(self.files.socket))
                talk.sendall(command.encode() + b"\n")
                answer = b""
                while part := talk.recv(4096):
                    answer += part
            said = answer.decode(errors="replace").strip()
            is_done = _DONE.fullmatch(said) is not None
            level = logging.DEBUG if is_done else logging.WARNING
            logger.log(level, "HAProxy answers %r with %r", command, said)

    def stop(self) -> None:
        """End it and every stream through it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_TALK_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_TALK_S)
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    def _read_lines(self) -> None:
        """Until it ends: keep the last lines of what it says, and log each."""
        if self._process.stderr is None:
            return
        with self._process.stderr as lines:
            for line in lines:
                said = line.decode(errors="replace").rstrip()
                self._said.append(said)
                logger.info("HAProxy: %s", said)

    def _wait_until_it_listens(self, address: Address) -> None:
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                self._reader.join(_TALK_S)
                alerts = [line for line in self._said if "ALERT" in line]
                said = "\n".join(self._said)
                why = alerts[0].rpartition(" : ")[2].strip() if alerts else said.strip()[-200:]
                raise StartError(f"HAProxy does not start for {address} ({why})")
            with contextlib.suppress(OSError):
                self.tell(["show info"])
                return
            time.sleep(_POLL_S)
        raise StartError(f"HAProxy does not answer on its own socket within {_START_S:g} s")


def _check_version(binary: str) -> None:
    try:
        said = subprocess.run(
            [binary, "-v"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartError(f"{binary}: HAProxy cannot be run ({error})") from error
    found = re.search(r"version (\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        version = said.partition("\n")[0] or "no version"
        wanted = ".".join(map(str, OLDEST))
        raise StartError(f"{binary}: HAProxy {wanted} or newer is needed ({version})")


def _end_with_parent() -> None:
    """In the child: end when the thread that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
