"""A second copy of a streamed layer's file, packed as this machine's kernels read it.

ONNX Runtime packs every matrix into memory of its own while it loads a graph. A layer that is read
from storage in every pass cannot be packed in every pass. So a graph is written once with its
packed matrices (`session.save_external_prepacked_constant_initializers`), and from then on they are
mapped. The bits are the same. The layout depends on the processor and on the version of ONNX
Runtime, so copies are made on the device and not in the bundle:

    CACHE/packed/FRONT/front-N.KEY.onnx, .onnx.data, .json

CACHE is $SPLITPOINT_CACHE_DIR, else `edge.cache_folder`. FRONT is made from the folder of the
front, and KEY from the file, the processor and the version. `.json` is written last, with the sizes
of the others. A copy of another key of the same layer is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import onnxruntime as ort

from edge.cache_folder import cache_folder
from edge.errors import FrontError
from edge.text_input import utf8_path

FOLDER_VARIABLE: Final = "SPLITPOINT_CACHE_DIR"
# A copy holds the file's own matrices too: ONNX Runtime packs them at load and compares.
COPY_FACTOR: Final = 2.5  # of the file's bytes, at most; measured 2.2
_EXTERNAL_FROM: Final = "1024"  # bytes from which a tensor lies outside the graph
_READ_CPU: Final = ("model name", "flags", "Features", "CPU implementer", "CPU part")


def default_folder() -> Path:
    """Where copies lie. FrontError where nothing says so."""
    given = os.environ.get(FOLDER_VARIABLE)
    base = Path(given) if given else cache_folder(os.environ)
    if base is None:
        raise FrontError(
            "no home folder to keep packed copies of streamed layers in: set "
            f"{FOLDER_VARIABLE} or XDG_CACHE_HOME"
        )
    return base / "packed"


def packed_copy(
    source: Path, root: Path, session_options: Callable[[], ort.SessionOptions]
) -> Path:
    """The packed copy of the graph `source`, made if there is none; returns its graph's path.

    session_options: of the sessions that will load it. FrontError where it cannot be written.
    """
    front = hashlib.sha256(os.fsencode(source.parent.resolve())).hexdigest()[:16]
    folder = root / front
    name = f"{source.stem}.{_key(source)}.onnx"
    if _is_whole(folder / name):
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_space(source, folder)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as made:
            _write(source, Path(made) / name, session_options())
            sizes = {}
            for part in (f"{name}.data", name):
                sizes[part] = (Path(made) / part).stat().st_size
                _bring_to_disk(Path(made) / part)
                os.replace(Path(made) / part, folder / part)
            _bring_to_disk(folder)  # the record vouches for what a loss of power must not undo
            record = Path(made) / "sizes"
            record.write_text(json.dumps(sizes), encoding="utf-8")
            os.replace(record, _record_of(folder / name))
    except OSError as error:
        raise FrontError(
            f"{folder}: cannot keep the packed copy of {source.name} there, which streaming needs "
            f"({error.strerror or error}); name another folder in {FOLDER_VARIABLE}"
        ) from error
    _remove_others(folder, source.stem, name)
    return folder / name


def _bring_to_disk(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _write(source: Path, target: Path, options: ort.SessionOptions) -> None:
    options.optimized_model_filepath = utf8_path(target)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", f"{target.name}.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", _EXTERNAL_FROM),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    ort.InferenceSession(utf8_path(source), options, providers=["CPUExecutionProvider"])


def _key(source: Path) -> str:
    """Changes with the file, the processor and the version of ONNX Runtime."""
    data = source.with_name(f"{source.name}.data").stat()
    parts = (
        hashlib.sha256(source.read_bytes()).hexdigest(),
        f"{data.st_size} {data.st_mtime_ns}",
        f"{ort.__version__} {platform.machine()} {_processor()}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What the system says of the first processor's kind; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = text.split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(_READ_CPU))


def _record_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _is_whole(path: Path) -> bool:
    try:
        sizes = json.loads(_record_of(path).read_text(encoding="utf-8"))
        return all(path.with_name(part).stat().st_size == size for part, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _check_space(source: Path, folder: Path) -> None:
    needed = COPY_FACTOR * source.with_name(f"{source.name}.data").stat().st_size
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FrontError(
            f"{folder}: {free / 2**20:.0f} MiB free, and the packed copy of {source.name} takes "
            f"{needed / 2**20:.0f} MiB; free some, or name another folder in {FOLDER_VARIABLE}"
        )


def _remove_others(folder: Path, stem: str, name: str) -> None:
    """Copies of the same layer with another key."""
    kept = {name, f"{name}.data", _record_of(Path(name)).name}
    for path in folder.glob(f"{stem}.*"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
