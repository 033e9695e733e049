"""Hidden states of text windows at several splits from one front pass, kept on disk.

The back half then runs once per coder, from the same states, beside the same untouched
predictions: a level and a baseline differ in nothing but what the link did to the rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from optimizer.export.calibration.hidden_states import decoder_layers
from optimizer.export.certify.certificate import Windows

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """windows [N, W]; hidden: split to [N, W, D]; last: what the head reads, [N, W, D]."""

    windows: Windows
    hidden: dict[int, F32]
    last: F32


def front_pass(
    model: PreTrainedModel, windows: Windows, splits: list[int], cache: Path | None
) -> Passed:
    """Run the model once over all windows, or read what an earlier run kept in `cache`."""
    name = hashlib.sha256(windows.tobytes()).hexdigest()[:12]
    files = {f"h{split}": split for split in splits}
    if cache is not None and all(
        (cache / f"{name}-{key}.npy").is_file() for key in [*files, "last"]
    ):
        kept = {key: np.load(cache / f"{name}-{key}.npy") for key in [*files, "last"]}
    else:
        kept = _run(model, windows, splits)
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            for key, array in kept.items():
                np.save(cache / f"{name}-{key}.npy", array)
    hidden = {split: kept[key] for key, split in files.items()}
    return Passed(windows=windows, hidden=hidden, last=kept["last"])


def _run(model: PreTrainedModel, windows: Windows, splits: list[int]) -> dict[str, F32]:
    found: dict[str, list[F32]] = {key: [] for key in (*(f"h{split}" for split in splits), "last")}

    def keep(key: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state = args[0] if args else kwargs["hidden_states"]
            found[key].append(state[0].detach().float().numpy().copy())

        return hook

    places = [(f"h{split}", decoder_layers(model)[split]) for split in splits]
    places.append(("last", model.get_output_embeddings()))
    handles = [
        place.register_forward_pre_hook(keep(key), with_kwargs=True) for key, place in places
    ]
    try:
        with torch.no_grad():
            for ids in windows:
                model(torch.from_numpy(ids)[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {key: np.stack(arrays) for key, arrays in found.items()}
