"""Which files of a folder make up the checkpoint. Nothing else in the folder is read.

The order: the files that `model.safetensors.index.json` names, else `model.safetensors`, else the
only safetensors file, else a complete set of numbered shards. Two checkpoints side by side are
refused where either could be meant. An adapter beside a model is refused too, because the model
without it is another model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from optimizer.errors import ModelError
from optimizer.export.sources.model_json import read_object
from optimizer.export.sources.safetensors_header import StoredTensor, merged, read_header

INDEX_NAME: Final = "model.safetensors.index.json"
WHOLE_NAME: Final = "model.safetensors"
_MAX_INDEX_BYTES: Final = 64 << 20
_ADAPTER_NAMES: Final = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """The files to read, sorted by name, and the tensors that they hold, by name.

    standard: whether transformers would read the same files. notes: one line for each thing that
    was left out.
    """

    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    standard: bool
    notes: tuple[str, ...] = ()


def checkpoint_files(folder: Path) -> CheckpointFiles:
    """The checkpoint of a folder. Values are not read.

    Raises ModelError where there is none, where files are missing or broken, and where it is not
    clear which files are meant.
    """
    refuse_adapter(folder)
    present = sorted(folder.glob("*.safetensors"))
    index = folder / INDEX_NAME
    if index.exists():
        files, tensors = _indexed(index)
        standard = True
        if folder / WHOLE_NAME in present and folder / WHOLE_NAME not in files:
            raise ModelError(
                f"{folder}: holds {WHOLE_NAME} and {INDEX_NAME}, which name different weights; "
                "remove the one that you do not mean"
            )
    else:
        files = _without_index(folder, present)
        standard = files == (folder / WHOLE_NAME,)
        tensors = merged({path: read_header(path) for path in files})
    if not tensors:
        raise ModelError(f"{files[0]}: holds no tensors; fetch it again")
    ignored = [path.name for path in present if path not in files]
    notes = (f"not part of the checkpoint, ignored: {', '.join(ignored)}",) if ignored else ()
    return CheckpointFiles(files=files, tensors=tensors, standard=standard, notes=notes)


def refuse_adapter(folder: Path) -> None:
    """Raises ModelError for a folder that holds an adapter (LoRA), alone or beside a model."""
    found = next((name for name in _ADAPTER_NAMES if (folder / name).exists()), None)
    if found is None:
        return
    alone = not (folder / "config.json").exists()
    what = "holds an adapter and no model" if alone else "an adapter lies beside the model"
    cure = (
        "merge it into its model first (peft: merge_and_unload), or give its folder as --adapter "
        "beside the --model that it belongs to"
    )
    raise ModelError(
        f"{folder / found}: {what}; {cure}"
        + ("" if alone else ", or move the adapter's files away to build the model without it")
    )


def _indexed(index: Path) -> tuple[tuple[Path, ...], dict[str, StoredTensor]]:
    """The files that the index names, and their tensors, which must be those of the index."""
    file_of = _weight_map(index)
    folder = index.parent
    files = tuple(folder / name for name in sorted(set(file_of.values())))
    for path in files:
        if not path.is_file():
            raise ModelError(f"{path}: named by {INDEX_NAME}, but not there; fetch the model again")
    headers = {path: read_header(path) for path in files}
    for name, file in file_of.items():
        if name not in headers[folder / file]:
            raise ModelError(
                f"{folder / file}: {name} is not in it, though {INDEX_NAME} says so; "
                "index and file are of different checkpoints"
            )
    for path, header in headers.items():
        extra = sorted(name for name in header if file_of.get(name) != path.name)
        if extra:
            raise ModelError(
                f"{path}: holds {extra[0]}, which {INDEX_NAME} does not name there; "
                "index and file are of different checkpoints"
            )
    return files, merged(headers)


def _weight_map(index: Path) -> dict[str, str]:
    values = read_object(index, max_bytes=_MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(values, dict) or not values:
        raise ModelError(f"{index}: has no weight_map; fetch the model again")
    for name, file in values.items():
        if not isinstance(file, str) or not file or Path(file).name != file or "\0" in file:
            raise ModelError(f"{index}: the file of {name} must be a plain name, not {file!r:.80}")
        if not file.endswith(".safetensors"):
            raise ModelError(f"{index}: {file!r:.80} is not a safetensors file, and is not read")
    return values


def _without_index(folder: Path, present: list[Path]) -> tuple[Path, ...]:
    if not present:
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        found = f"; it has {pickled[0]}" if pickled else ""
        raise ModelError(
            f"{folder}: no *.safetensors files (pickled weights are not read){found}; "
            "fetch the model in safetensors"
        )
    if folder / WHOLE_NAME in present:
        return (folder / WHOLE_NAME,)
    if len(present) == 1 and not _SHARD.fullmatch(present[0].name):
        return (present[0],)
    sets: dict[tuple[str, int], dict[int, Path]] = {}
    for path in present:
        if found_shard := _SHARD.fullmatch(path.name):
            key = (found_shard["stem"], int(found_shard["count"]))
            sets.setdefault(key, {})[int(found_shard["number"])] = path
    if len(sets) == 1:
        ((_, count), shards) = next(iter(sets.items()))
        missing = sorted(set(range(1, count + 1)) - set(shards))
        if missing or len(shards) != count:
            raise ModelError(
                f"{folder}: {len(shards)} of {count} shards are there, and no {INDEX_NAME}; "
                "fetch the model again"
            )
        if len(shards) == len(present):
            return tuple(present)
    names = ", ".join(path.name for path in present[:4]) + (", ..." if len(present) > 4 else "")
    raise ModelError(
        f"{folder}: several safetensors files and no {INDEX_NAME} that says which count ({names}); "
        f"keep one checkpoint, or name one file {WHOLE_NAME}"
    )
