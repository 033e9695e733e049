"""A pull fetches what changed, goes on where it was, and leaves the folder whole or as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from edge.errors import BusyError, InputError, LostError, MisconfiguredError, PeerError
from edge.pull import pulling
from edge.pull.partial_file import PartialFile
from edge.pull.pulling import PullSettings, pull
from edge.pull.rate_limit import PullRate
from edge.pull.staging import Staging, staging_of
from optimizer.artifacts.bundle import FileRecord
from protos.pull import FetchRequest, FileChunk
from tests.edge.pull.fake_source import FILES, FakeSource, honest, record_of

AT_ONCE = PullSettings(sleep=lambda seconds: None)
FRONT = "edge/front.onnx"


def content_of(folder: Path) -> dict[str, bytes]:
    """All files of a bundle but the manifest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    found.pop("manifest.json", None)
    return found


def test_a_device_gets_its_files_and_nothing_of_the_cloud(tmp_path: Path) -> None:
    source = FakeSource()
    report = pull(source, tmp_path / "bundle", AT_ONCE)
    assert content_of(tmp_path / "bundle") == FILES
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == source.list_files().manifest
    assert report.fetched_bytes == report.num_bytes == sum(map(len, FILES.values()))
    assert not staging_of(tmp_path / "bundle").exists()


@pytest.mark.parametrize("by_size", [False, True])
def test_where_nothing_changed_nothing_is_fetched(tmp_path: Path, by_size: bool) -> None:
    source = FakeSource()
    pull(source, tmp_path / "bundle", AT_ONCE)
    source.requests.clear()
    report = pull(source, tmp_path / "bundle", PullSettings(by_size=by_size))
    assert (report.fetched, report.fetched_bytes, source.requests) == ((), 0, [])


def test_only_what_changed_is_fetched_and_what_is_gone_is_deleted(tmp_path: Path) -> None:
    pull(FakeSource({**FILES, "draft/head.onnx": b"old"}), tmp_path / "bundle", AT_ONCE)
    changed = {**FILES, "edge/tokenizer.json": b"[]"}
    report = pull(FakeSource(changed), tmp_path / "bundle", AT_ONCE)
    assert (report.fetched, report.fetched_bytes) == (("edge/tokenizer.json",), 2)
    assert content_of(tmp_path / "bundle") == changed


def test_a_file_that_was_damaged_here_is_fetched_again(tmp_path: Path) -> None:
    pull(FakeSource(), tmp_path / "bundle", AT_ONCE)
    damaged = bytearray(FILES[FRONT])
    damaged[7] ^= 1
    (tmp_path / "bundle" / FRONT).write_bytes(damaged)
    assert pull(FakeSource(), tmp_path / "bundle", AT_ONCE).fetched == (FRONT,)
    assert content_of(tmp_path / "bundle") == FILES


class Breaking:
    """The first calls for the front end after so many bytes."""

    def __init__(self, *after: int) -> None:
        self._after = list(after)

    def __call__(self, request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        ends = self._after.pop(0) if request.name == FRONT and self._after else None
        for chunk in honest(request, content):
            if ends is not None and chunk.offset + len(chunk.data) > ends:
                raise LostError("the link is gone")
            yield chunk


def test_a_lost_link_is_gone_on_from_where_it_was(tmp_path: Path) -> None:
    source = FakeSource(chunks=Breaking(64, 64, 160))
    report = pull(source, tmp_path / "bundle", AT_ONCE)
    offsets = [request.offset for request in source.requests if request.name == FRONT]
    assert offsets == [0, 64, 64, 160]
    assert report.fetched_bytes == report.num_bytes
    assert content_of(tmp_path / "bundle") == FILES


def test_a_link_that_stays_lost_ends_and_the_next_pull_goes_on(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(LostError, match="the link is gone"):
        pull(
            FakeSource(chunks=Breaking(*[96] * 20)),
            tmp_path / "bundle",
            PullSettings(sleep=waits.append),
        )
    assert len(waits) == pulling.MAX_FAILURES
    assert waits == sorted(waits)
    assert not (tmp_path / "bundle").exists()
    source = FakeSource()
    report = pull(source, tmp_path / "bundle", AT_ONCE)
    assert [request.offset for request in source.requests if request.name == FRONT] == [96]
    assert report.fetched_bytes == report.num_bytes - 96 - len(FILES["plan.yaml"])
    assert content_of(tmp_path / "bundle") == FILES


def test_a_full_server_is_asked_again_after_the_time_that_it_said(tmp_path: Path) -> None:
    busy = [BusyError("too many pulls", retry_after_s=7.0)]

    def chunks(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        if busy:
            raise busy.pop()
        yield from honest(request, content)

    waits: list[float] = []
    pull(FakeSource(chunks=chunks), tmp_path / "bundle", PullSettings(sleep=waits.append))
    assert waits == [7.0]


def test_a_server_that_stays_full_is_given_up_after_a_quarter_of_an_hour(tmp_path: Path) -> None:
    def chunks(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        yield from ()
        raise BusyError("too many pulls", retry_after_s=2.0)

    waits: list[float] = []
    with pytest.raises(BusyError, match="too many pulls"):
        pull(FakeSource(chunks=chunks), tmp_path / "bundle", PullSettings(sleep=waits.append))
    assert sum(waits) == pulling.MAX_BUSY_S


def test_an_address_that_cannot_work_is_not_tried_again(tmp_path: Path) -> None:
    def chunks(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        yield from ()
        raise MisconfiguredError("no TLS here")

    source = FakeSource(chunks=chunks)
    with pytest.raises(MisconfiguredError):
        pull(source, tmp_path / "bundle", AT_ONCE)
    assert len(source.requests) == 1


def partial(folder: Path) -> PartialFile:
    return PartialFile(folder, FRONT, FileRecord(**record_of(FILES[FRONT])))


def test_a_beginning_that_is_not_what_its_note_says_is_thrown_away(tmp_path: Path) -> None:
    with partial(tmp_path) as part:
        part.write(FILES[FRONT][:100])
    with partial(tmp_path) as part:
        assert part.num_bytes == 100
    data = bytearray(part.path.read_bytes())
    data[50] ^= 1
    part.path.write_bytes(data)
    with partial(tmp_path) as part:
        assert part.num_bytes == 0
        assert part.path.stat().st_size == 0


@pytest.mark.parametrize("note", ['{"num_bytes": -1}', "{", '{"num_bytes": 9999, "sha256": ""}'])
def test_a_note_without_sense_counts_nothing(tmp_path: Path, note: str) -> None:
    with partial(tmp_path) as part:
        part.write(FILES[FRONT][:100])
    part.path.with_suffix(".good").write_text(note)
    with partial(tmp_path) as part:
        assert part.num_bytes == 0


def test_bytes_behind_the_note_are_not_taken(tmp_path: Path) -> None:
    with partial(tmp_path) as part:
        part.write(FILES[FRONT][:100])
    with part.path.open("ab") as file:
        file.write(b"torn")
    with partial(tmp_path) as part:
        assert (part.num_bytes, part.path.stat().st_size) == (100, 100)


def test_a_taken_up_beginning_of_another_content_costs_a_second_fetch(tmp_path: Path) -> None:
    """The note fits its bytes, which came from a server that lied: the whole hash finds it."""
    staging = staging_of(tmp_path / "bundle")
    staging.mkdir()
    with partial(staging) as part:
        part.write(b"x" * 64)
    source = FakeSource()
    pull(source, tmp_path / "bundle", AT_ONCE)
    assert [one.offset for one in source.requests if one.name == FRONT] == [64, 0]
    assert content_of(tmp_path / "bundle") == FILES


def test_what_an_older_bundle_left_in_the_staging_folder_goes(tmp_path: Path) -> None:
    staging = staging_of(tmp_path / "bundle")
    staging.mkdir()
    (staging / "0123.part").write_bytes(b"old")

    def chunks(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        assert not (staging / "0123.part").exists()
        yield from honest(request, content)

    pull(FakeSource(chunks=chunks), tmp_path / "bundle", AT_ONCE)


def test_what_an_interrupted_pull_left_goes_though_nothing_changed(tmp_path: Path) -> None:
    source = FakeSource()
    pull(source, tmp_path / "bundle", AT_ONCE)
    staging_of(tmp_path / "bundle").mkdir()
    (staging_of(tmp_path / "bundle") / "0123.part").write_bytes(b"of another bundle")
    assert pull(source, tmp_path / "bundle", PullSettings(by_size=True)).fetched == ()
    assert not staging_of(tmp_path / "bundle").exists()


def test_two_pulls_at_once_fetch_once(tmp_path: Path) -> None:
    waits = threading.Event()

    def chunks(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        assert waits.wait(30)  # until the other one has found the lock taken
        yield from honest(request, content)

    first, second = FakeSource(chunks=chunks), FakeSource(chunks=chunks)
    settings = PullSettings(on_wait=waits.set)
    pulls = [
        threading.Thread(target=pull, args=(source, tmp_path / "bundle", settings))
        for source in (first, second)
    ]
    for one in pulls:
        one.start()
    for one in pulls:
        one.join(60)
    assert sorted([len(first.requests), len(second.requests)]) == [0, len(FILES)]
    assert content_of(tmp_path / "bundle") == FILES


def test_a_lock_whose_folder_was_removed_is_taken_anew(tmp_path: Path) -> None:
    with Staging(tmp_path / "bundle") as staging:
        staging.remove()
        with Staging(tmp_path / "bundle") as other:
            assert other.folder.is_dir()


class Killed(BaseException):
    """Stands for SIGKILL between two steps."""


@pytest.mark.parametrize("step", range(8))
def test_a_pull_that_dies_while_it_puts_files_into_place_is_mended(
    tmp_path: Path, step: int
) -> None:
    folder = tmp_path / "bundle"
    pull(FakeSource({**FILES, "draft/head.onnx": b"old"}), folder, AT_ONCE)
    changed = {name: content + b"!" for name, content in FILES.items()}
    steps = iter(range(100))

    def dying(patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Path, name)

        def one(self: Path, *arguments: object, **options: object) -> object:
            if next(steps) == step and self.suffix not in (".good", ".new"):
                raise Killed
            return real(self, *arguments, **options)

        patch.setattr(Path, name, one)

    with pytest.MonkeyPatch.context() as patch:
        dying(patch, "replace")
        dying(patch, "unlink")
        with contextlib.suppress(Killed):
            pull(FakeSource(changed), folder, AT_ONCE)
    pull(FakeSource(changed), folder, AT_ONCE)
    assert content_of(folder) == changed


def test_a_rate_is_kept_and_lost_time_is_not_caught_up() -> None:
    class Clock(NamedTuple):
        now_s: list[float]

        def sleep(self, seconds: float) -> None:
            self.now_s[0] += seconds

    clock = Clock([100.0])
    rate = PullRate(1000.0, clock=lambda: clock.now_s[0], sleep=clock.sleep)
    for _ in range(10):
        rate.took(500)
    assert clock.now_s[0] == pytest.approx(105.0)
    clock.sleep(60.0)
    rate.took(500)
    assert clock.now_s[0] == pytest.approx(165.5)
    assert rate.chunk_bytes == 1024
    assert PullRate(None).chunk_bytes == 64 << 10


def test_a_folder_that_holds_something_else_stays_as_it_is(tmp_path: Path) -> None:
    notes, full, file = tmp_path / "notes", tmp_path / "full", tmp_path / "file"
    notes.mkdir()
    (notes / "todo.txt").write_text("x")
    pull(FakeSource(), full, AT_ONCE)
    (full / "cloud").mkdir()
    file.write_text("x")
    for folder, reason in ((notes, "holds no bundle"), (full, "server's"), (file, "no folder")):
        with pytest.raises(InputError, match=reason):
            pull(FakeSource({**FILES, "edge/new": b"1"}), folder, AT_ONCE)
    assert [path.name for path in notes.iterdir()] == ["todo.txt"]


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "bundle"
    outside.mkdir()
    pull(FakeSource(), folder, AT_ONCE)
    (outside / "front").write_bytes(FILES[FRONT])
    (folder / FRONT).unlink()
    (folder / FRONT).symlink_to(outside / "front")
    assert pull(FakeSource(), folder, AT_ONCE).fetched == (FRONT,)
    assert not (folder / FRONT).is_symlink()
    shutil.rmtree(folder / "edge")
    (folder / "edge").symlink_to(outside)
    with pytest.raises(InputError, match="no folder of the bundle"):
        pull(FakeSource(), folder, AT_ONCE)
    assert [path.name for path in outside.iterdir()] == ["front"]


def test_a_linked_staging_folder_is_refused(tmp_path: Path) -> None:
    staging_of(tmp_path / "bundle").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        pull(FakeSource(), tmp_path / "bundle", AT_ONCE)


def test_a_bundle_that_the_disk_has_no_room_for_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    room = pulling.RESERVE_BYTES + 100
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=room))
    source = FakeSource()
    with pytest.raises(InputError, match="needs 260 bytes more"):
        pull(source, tmp_path / "bundle", AT_ONCE)
    assert source.requests == []


def test_a_disk_that_gets_full_is_one_line_and_the_next_pull_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="bundle: No space left on device"):
            pull(FakeSource(), tmp_path / "bundle", AT_ONCE)
    assert not (tmp_path / "bundle").exists()
    pull(FakeSource(), tmp_path / "bundle", AT_ONCE)
    assert content_of(tmp_path / "bundle") == FILES


def test_a_changed_byte_is_refused_and_the_folder_stays(tmp_path: Path) -> None:
    pull(FakeSource(), tmp_path / "bundle", AT_ONCE)
    new = {**FILES, FRONT: b"newer" * 40}

    def chunks(request: FetchRequest, content: bytes) -> Iterator[FileChunk]:
        for chunk in honest(request, content):
            data = chunk.data.replace(b"newer", b"neweR", 1) if chunk.offset == 80 else chunk.data
            yield FileChunk(offset=chunk.offset, data=data)

    with pytest.raises(PeerError, match=r"front.onnx' is refused: .*SHA-256") as caught:
        pull(FakeSource(new, chunks=chunks), tmp_path / "bundle", AT_ONCE)
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path / "bundle") == FILES
    assert not list(staging_of(tmp_path / "bundle").glob("*.part"))
