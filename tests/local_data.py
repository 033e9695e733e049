"""Where tests find what is not in the repository: the real model, and the evaluation data.

Each function skips the calling test, with its reason, when the thing is not on this machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


def smollm2() -> Path:
    """The folder with SmolLM2-135M-Instruct's GGUF (`splitpoint model fetch` makes it)."""
    folder = CHECKOUT / "models" / "smollm2-135m-instruct"
    if not list(folder.glob("*.gguf")):
        pytest.skip(f"no model in {folder.relative_to(CHECKOUT)} ('splitpoint model fetch')")
    return folder


def shared_data(name: str) -> Path:
    """One folder of the evaluation data: beside the checkout, or in SPLITPOINT_DATA."""
    root = Path(os.environ.get("SPLITPOINT_DATA", CHECKOUT.parent / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"no evaluation data: {root / name} is not there")
    return root / name
