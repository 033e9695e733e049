"""A Dockerfile's steps, as far as this project's use them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
NAMES = ("cloud-cpu", "cloud-cuda", "edge")


class Step(NamedTuple):
    """One instruction and what follows it, on one line."""

    instruction: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The exec form's words, or the rest split at spaces."""
        listed = self.rest[self.rest.index("[") :] if "[" in self.rest else ""
        return list(json.loads(listed)) if listed.endswith("]") else self.rest.split()


def stages(name: str) -> list[list[Step]]:
    """The steps of each stage of an image's Dockerfile; what comes before FROM is left out."""
    text = (DEPLOY / f"docker/{name}.Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[Step]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        if found:
            found[-1].append(Step(instruction, " ".join(rest.split())))
    return found


def variables(steps: list[Step]) -> dict[str, str]:
    """What a stage's ENV steps set."""
    return dict(
        word.split("=", 1) for step in steps if step.instruction == "ENV" for word in step.words
    )


def of(steps: list[Step], instruction: str) -> list[Step]:
    """The steps of one kind."""
    return [step for step in steps if step.instruction == instruction]
