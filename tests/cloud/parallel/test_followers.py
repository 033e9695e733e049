"""Ranks that die, hang or are left alone: an error in one line in bounded time, and no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import transformers

from cloud.engine.batch_entry import BatchEntry
from cloud.errors import EngineError, StartError
from cloud.kv.pool import KvPool
from cloud.parallel.followers import Followers
from cloud.parallel.link import FollowerLink
from cloud.parallel.parallel_engine import ParallelEngine
from tests.cloud.tiny_bundle import save_back
from tests.tiny_models import make_tiny_model
from tests.waiting import comes_true

# Rank 0 of two, which says whom it started and then waits to be killed.
LONELY = """
import time
from cloud.parallel.followers import Followers
followers = Followers(["cpu", "cpu"])
print(followers.processes[0].pid, followers._folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("ranks")
    save_back(make_tiny_model("llama", root), root / "cloud")
    return root / "cloud"


def started(folder: Path, timeout_s: float) -> tuple[Followers, ParallelEngine, KvPool]:
    followers = Followers(["cpu", "cpu"], threads=1, timeout_s=timeout_s)
    files = sorted(folder.glob("*.safetensors"))
    engine = ParallelEngine.load(followers, folder, first_layer=0, weight_files=files)
    return followers, engine, engine.make_pool(1 << 20)


def step(engine: ParallelEngine, pool: KvPool) -> None:
    with pool.lease(split=0, max_tokens=16) as lease:
        rows = torch.ones(4, engine.hidden_size)
        engine.forward([BatchEntry(lease=lease, rows=rows, num_logits=1)])


def test_a_killed_rank_is_noticed_and_named_and_no_step_runs_after_it(folder: Path) -> None:
    followers, engine, pool = started(folder, 60.0)
    step(engine, pool)
    assert engine.trouble() is None
    followers.processes[0].kill()
    begun_s = time.monotonic()
    for _ in range(2):
        with pytest.raises(EngineError) as caught:
            step(engine, pool)
        assert str(caught.value) == "the process of rank 1 has ended (killed by signal 9)"
    assert time.monotonic() - begun_s < 20
    assert engine.trouble() == "the process of rank 1 has ended (killed by signal 9)"
    followers.close()


def test_a_rank_that_hangs_ends_the_step_and_is_killed_at_last(folder: Path) -> None:
    followers, engine, pool = started(folder, 1.0)
    step(engine, pool)
    (process,) = followers.processes
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match=r"^a step failed on rank 0 of 2: .*[Tt]ime") as caught:
        step(engine, pool)
    assert "\n" not in str(caught.value)
    assert engine.trouble() == str(caught.value)
    followers.close()
    assert process.returncode == -signal.SIGKILL


def test_a_rank_that_fails_says_why(folder: Path) -> None:
    with_no_weights = Followers(["cpu", "cpu"], threads=1)
    back = {"folder": str(folder), "first_layer": 9, "weight_files": [], "reference": None}
    with_no_weights.ask("load", back=back)
    with pytest.raises(StartError, match=r"rank 1 has ended \(first layer 9: the model has 4\)"):
        with_no_weights.answers("loaded")
    with_no_weights.close()


def test_no_rank_outlives_rank_0_whatever_ends_it() -> None:
    lonely = subprocess.Popen([sys.executable, "-c", LONELY], stdout=subprocess.PIPE, text=True)
    assert lonely.stdout is not None
    pid, folder = lonely.stdout.readline().split()
    follower = psutil.Process(int(pid))
    assert Path(folder).is_dir()
    assert follower.is_running()
    lonely.kill()
    lonely.wait()
    assert comes_true(lambda: not _runs(follower), within_s=60)
    assert not Path(folder).exists()
    lonely.stdout.close()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_message_arrives_whole_and_the_end_of_the_stream_is_an_error() -> None:
    ours, theirs = (FollowerLink(end, send_timeout_s=5.0) for end in socket.socketpair())
    data = os.urandom(3 << 20)
    sender = threading.Thread(
        target=ours.send, args=("step", [memoryview(data), memoryview(b"end")]), kwargs={"more": 1}
    )
    sender.start()
    message = theirs.receive()
    sender.join()
    assert (message.kind, message.header["more"]) == ("step", 1)
    assert bytes(message.data) == data + b"end"
    ours.close()
    with pytest.raises(EOFError):
        theirs.receive()
    with pytest.raises(OSError, match=r".*"):
        theirs.send("step", [memoryview(data)])
    theirs.close()


def test_a_message_that_nobody_reads_is_given_up() -> None:
    ours, theirs = (FollowerLink(end, send_timeout_s=0.1) for end in socket.socketpair())
    with pytest.raises(TimeoutError):
        ours.send("step", [memoryview(bytes(8 << 20))])
    ours.close()
    theirs.close()
