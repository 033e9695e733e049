"""Where tests find what is not in the repository: the real model, and the evaluation data.

Each function skips the calling test, with its reason, when the thing is not on this machine.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from optimizer.export.sources.model_source import ModelSource, open_source

CHECKOUT = Path(__file__).resolve().parents[1]


def smollm2() -> Path:
    """The folder with SmolLM2-135M-Instruct's GGUF (`splitpoint model fetch` makes it)."""
    folder = CHECKOUT / "models" / "smollm2-135m-instruct"
    if not list(folder.glob("*.gguf")):
        pytest.skip(
            f"no model in {folder.relative_to(CHECKOUT)}: run 'make setup', which fetches it"
        )
    return folder


@functools.cache
def smollm2_source() -> ModelSource:
    """SmolLM2's files, opened once: its tokenizer and its checks take seconds."""
    return open_source(smollm2())


@functools.cache
def smollm2_model() -> Any:
    """SmolLM2 in float32, read once. Nobody may change it."""
    return smollm2_source().load_model().eval()


def shared_data(name: str) -> Path:
    """One folder of the evaluation data: beside the checkout, or in SPLITPOINT_DATA."""
    root = Path(os.environ.get("SPLITPOINT_DATA", CHECKOUT.parent / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"no evaluation data: {root / name} is not there")
    return root / name
