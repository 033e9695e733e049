"""`splitpoint serve` in a process that is killed for good and started again on the same port."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from splitpoint.server_process import READY_PREFIX


class ServerToKill:
    """A running server of `bundle` on `port` (0: a free one). RuntimeError when it does not start.

    `splitpoint.server_process.serving` stops its server in peace; this one never does.
    """

    def __init__(self, bundle: Path, port: int = 0, *, kv_memory: str = "256MiB") -> None:
        self._bundle = bundle
        self._kv_memory = kv_memory
        command = [sys.executable, "-m", "splitpoint", "serve", str(bundle)]
        self._process = subprocess.Popen(
            [*command, "--listen", f"127.0.0.1:{port}", "--kv-memory", kv_memory],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line.startswith(READY_PREFIX):
            self.kill()
            raise RuntimeError("the server did not start: see above")
        self.port = int(line.rpartition(":")[2])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        """SIGKILL: it can say goodbye to nobody."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def again(self) -> ServerToKill:
        """Kill it; another one takes its port."""
        self.kill()
        return ServerToKill(self._bundle, self.port, kv_memory=self._kv_memory)
