"""What a killed build leaves is removed by the next; what is in use, or not ours, stays."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.export.working_folder import LOCK_NAME, publish, remove_abandoned, working_folder

WORKER = """
import sys, time
from pathlib import Path
from optimizer.export.working_folder import working_folder
with working_folder(Path(sys.argv[1])) as folder:
    (folder / "bundle").mkdir()
    (folder / "bundle" / "weights").write_bytes(bytes(1000))
    if len(sys.argv) > 2:
        Path(sys.argv[1]).rename(folder / "replaced")
    print(folder, flush=True)
    time.sleep(600)
"""


def started(out: Path, *more: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that works on `out`, and its folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(out), *more], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as said:
        return process, Path(said.readline().strip())


def test_the_folder_of_a_killed_process_goes_and_that_of_a_running_one_stays(
    tmp_path: Path,
) -> None:
    killed, left = started(tmp_path / "a")
    running, used = started(tmp_path / "b")
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        with working_folder(tmp_path / "c") as mine:
            assert not left.exists()
            assert used.is_dir()
            assert remove_abandoned(tmp_path) == []  # mine is in use too
            assert mine.is_dir()
    finally:
        running.kill()
        running.wait()
    assert remove_abandoned(tmp_path) == [used]
    assert list(tmp_path.iterdir()) == []


def test_a_result_that_a_killed_process_had_put_aside_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()
    process, _ = started(out, "replace")
    process.kill()
    process.wait()
    assert not out.exists()
    remove_abandoned(tmp_path)
    assert [path.name for path in out.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / ".bundle-12345678").mkdir()
    (tmp_path / "visible").mkdir()
    (tmp_path / "visible" / LOCK_NAME).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK_NAME).touch()
    (tmp_path / ".link").symlink_to(tmp_path / "elsewhere")
    assert remove_abandoned(tmp_path) == []
    assert (tmp_path / "elsewhere" / LOCK_NAME).exists()
    assert (tmp_path / ".bundle-12345678").is_dir()


def test_a_lock_that_names_a_path_elsewhere_restores_nothing_there(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    folder = parent / ".x-1"
    (folder / "replaced").mkdir(parents=True)
    (folder / LOCK_NAME).write_text("../../escaped")
    remove_abandoned(parent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]


def test_the_folder_goes_when_the_work_fails(tmp_path: Path) -> None:
    def work() -> None:
        with working_folder(tmp_path / "a") as folder:
            (folder / "x").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), working_folder(tmp_path / "a", keep=True):
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 1  # for a build that resumes


def test_publishing_replaces_whole_folders(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    for name in ("first", "second"):
        with working_folder(out) as working:
            (working / "made").mkdir()
            (working / "made" / name).touch()
            publish(working / "made", out)
        assert [path.name for path in out.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_cannot_take_the_old_ones_place_leaves_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    with working_folder(out) as working, pytest.raises(FileNotFoundError):
        publish(working / "never-made", out)
    assert out.is_dir()
