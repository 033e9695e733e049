"""The stages of a build: which are done, which files each made, and how far the build is.

    WORKING/stages.json    what the build is made from, and the files of every stage that is done

A build that was interrupted leaves its working folder. One that resumes takes over the stages whose
inputs are the same; whatever a half-done stage left is removed first. Every stage gives the same
bytes each time, so the result is that of a build that was never interrupted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hwprofiles.errors import ProfileError
from hwprofiles.heap import trim_heap
from hwprofiles.schema.strict_json import read_json

STAGES_NAME: Final = "stages.json"
TRYING_BACK: Final = "trying the back"
# About how long each takes, for the share of the build that is done.
_COSTS: Final[Mapping[str, float]] = {
    "tokenizer": 2,
    "front": 12,
    "back": 6,
    TRYING_BACK: 4,
    "calibration": 78,
    "manifest": 2,
}
# In the order in which a calibration goes through them.
_CALIBRATION_COSTS: Final[Mapping[str, float]] = {
    "the model writes calibration text": 25,
    "reading hidden states": 5,
    "reading gradients": 30,
    "reading tokens alone": 10,
    "measuring the model": 5,
    "measuring levels": 25,
}

Progress = Callable[[str], None]  # called with the name of the stage that begins
Share = Callable[[float], None]  # called with the share of the build that is done, 0 to 1


class BuildStages:
    """See the module. Stages make their files in `made`, below the working folder."""

    def __init__(
        self,
        working: Path,
        *,
        inputs: str,
        wanted: tuple[str, ...],
        progress: Progress,
        share: Share | None = None,
    ) -> None:
        """inputs: a digest of everything that the result depends on. wanted: the stages' names."""
        self.made = working / "bundle"
        self._record = working / STAGES_NAME
        self._progress = progress
        self._share = share or (lambda done: None)
        self._total = sum(_COSTS[name] for name in wanted)
        self._passed = 0.0
        self._inputs = inputs
        self._done = self._taken_over()
        self._remove_the_rest()

    def run(self, name: str, make: Callable[[], Any]) -> Any:
        """Run a stage and remember its files and its result (JSON); the result of one kept."""
        if name in self._done:
            self._progress(f"{name} (kept)")
        else:
            self._progress(name)
            before = set(self._files())
            result = make()
            files = {file: size for file, size in self._files().items() if file not in before}
            self._done[name] = {"files": files, "result": result}
            self._save()
            trim_heap()  # a stage's peak is its own
        self._passed += _COSTS[name]
        self._share(self._passed / self._total)
        return self._done[name]["result"]

    def calibrating(self, what: str, done: int, total: int) -> None:
        """A step inside the stage `calibration`."""
        self._progress(f"{what} ({done} of {total})" if total > 1 else what)
        names = list(_CALIBRATION_COSTS)
        if what not in names:
            return
        costs = list(_CALIBRATION_COSTS.values())
        at = names.index(what)
        inside = (sum(costs[:at]) + costs[at] * done / max(total, 1)) / sum(costs)
        self._share((self._passed + _COSTS["calibration"] * inside) / self._total)

    def _taken_over(self) -> dict[str, Any]:
        """The stages that an earlier build of the same inputs finished, with their files there."""
        try:
            values = read_json(self._record, max_bytes=1 << 24)
            if values["inputs"] != self._inputs:
                return {}
            there = self._files()
            done: dict[str, Any] = values["done"]
            return {
                name: stage
                for name, stage in done.items()
                if all(there.get(file) == size for file, size in stage["files"].items())
            }
        except (ProfileError, KeyError, TypeError, AttributeError):
            return {}

    def _remove_the_rest(self) -> None:
        self.made.mkdir(exist_ok=True)
        kept = {file for stage in self._done.values() for file in stage["files"]}
        for path in sorted(self.made.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.made).as_posix() not in kept:
                path.unlink()
        for path in self.made.parent.iterdir():
            if path != self.made and path.is_dir() and path.name.startswith("rows-"):
                shutil.rmtree(path, ignore_errors=True)

    def _files(self) -> dict[str, int]:
        return {
            path.relative_to(self.made).as_posix(): path.stat().st_size
            for path in self.made.rglob("*")
            if path.is_file()
        }

    def _save(self) -> None:
        """Whole or not at all, after the files of the stage are on the disk."""
        for file in self._files():
            descriptor = os.open(self.made / file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        new = self._record.with_suffix(".new")
        new.write_text(json.dumps({"inputs": self._inputs, "done": self._done}), encoding="utf-8")
        os.replace(new, self._record)


def stages_left_of(out: Path) -> list[str]:
    """The stages that an interrupted build of `out` finished, in order; for people only."""
    found: list[str] = []
    for record in out.parent.glob(f".{out.name}-*/{STAGES_NAME}"):
        try:
            found = max(found, list(read_json(record, max_bytes=1 << 24)["done"]), key=len)
        except (ProfileError, KeyError, TypeError):
            continue
    return found
