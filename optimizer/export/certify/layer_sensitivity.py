"""How much quality each front layer loses at 4 bits, measured with the exported front itself.

For every layer, a front with that layer at 4 bits and all others at 8 runs over a text in ONNX
Runtime, and the model's own back continues from its rows. The layer's loss is the rise of the
text's negative log-likelihood over a front with all layers at 8 bits. What that front loses against
the untouched model is divided among the layers evenly. Losses are logarithms of perplexity ratios,
so they add up. Noise may make one negative; `Sensitivity.layer_pct` cuts that off.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from transformers import PreTrainedModel

from optimizer.artifacts.bundle import FRONT_NAME
from optimizer.artifacts.plan import LAYER_BITS, ModelRef, Partition, Plan
from optimizer.artifacts.sensitivity import Sensitivity
from optimizer.errors import BuildError
from optimizer.export.calibration.hidden_states import back_logits, hidden_and_logits
from optimizer.export.certify.certificate import Windows
from optimizer.export.front.float_front import empty_cache_inputs
from optimizer.export.front.front_graph import float_front, front_at
from optimizer.export.sources.model_source import ModelSource

Rows = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
LONGEST_WINDOW: Final = 8192  # tokens of a text's windows


class FrontVariants:
    """Fronts of one model at one split with any bits in each layer, without a bundle.

    One float front is exported into `folder`, which must exist as long as this does. Its matrices
    are rounded once for each number of bits. Raises BuildError where the split has no layers, or
    all of them: the head would need bits of its own.
    """

    def __init__(self, source: ModelSource, split: int, folder: Path) -> None:
        if not 0 < split < source.geometry.num_layers:
            raise BuildError(
                f"split {split}: layer bits are chosen for 1 to {source.geometry.num_layers - 1}"
            )
        self.split = split
        self._plan = _plan(source, split)
        self._folder = folder
        self._front = float_front(source, self._plan, folder)

    def rows(self, layer_bits: tuple[int, ...], windows: Windows) -> Rows:
        """Hidden states float32 [N, W, D] of windows [N, W] through a front with these bits."""
        partition = replace(self._plan.partition, front_bits=min(layer_bits))
        plan = replace(self._plan, front_layer_bits=layer_bits, partition=partition)
        path = self._folder / FRONT_NAME
        front_at(self._front, plan, path)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return np.stack([self._run(session, ids) for ids in windows])

    def _run(self, session: Any, ids: npt.NDArray[np.int64]) -> Rows:
        inputs = empty_cache_inputs(session, self._plan.model.geometry, ids)
        rows: Rows = session.run(["hidden_states"], inputs)[0][0]
        return rows


def measure_sensitivity(
    source: ModelSource,
    model: PreTrainedModel,
    *,
    split: int,
    windows: Windows,
    progress: Progress | None = None,
) -> Sensitivity:
    """Losses of every front layer on text `windows` [N, W].

    model: the whole model in float32. Front and back run split + 1 times over the text.
    """
    with tempfile.TemporaryDirectory(prefix="splitpoint-fronts-") as temporary:
        fronts = FrontVariants(source, split, Path(temporary))
        untouched = negative_log_likelihood(model, split, None, windows)
        wide = negative_log_likelihood(model, split, fronts.rows((8,) * split, windows), windows)
        losses = []
        for layer in range(split):
            bits = tuple(4 if other == layer else 8 for other in range(split))
            narrow = negative_log_likelihood(model, split, fronts.rows(bits, windows), windows)
            share = (wide - untouched) / split
            losses.append({4: narrow - wide + share, 8: share})
            if progress is not None:
                progress(layer + 1, split)
    return Sensitivity(
        model_sha256=source.sha256,
        split=split,
        num_tokens=int(windows.size),
        losses=tuple(losses),
    )


def negative_log_likelihood(
    model: PreTrainedModel, split: int, rows: Rows | None, windows: Windows
) -> float:
    """Mean over the next tokens of windows [N, W], in nats.

    rows: float32 [N, W, D] from which the back continues (None: the model's own hidden state).
    """
    found = []
    for index, ids in enumerate(windows):
        tokens = torch.from_numpy(ids)
        if rows is None:
            logits = hidden_and_logits(model, split, tokens)[1]
        else:
            logits = back_logits(model, split, torch.from_numpy(rows[index]), tokens)
        log_probs = logits[:-1].float().log_softmax(-1)
        found.append(-log_probs.gather(1, tokens[1:, None])[:, 0].double().mean().item())
    return float(np.mean(found))


def _plan(source: ModelSource, split: int) -> Plan:
    return Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
        partition=Partition(split=split, front_bits=min(LAYER_BITS), back_bits=32),
        back_start=split,
        kv_bits=32,
        level="lossless",
        max_tokens=min(source.geometry.context_length, LONGEST_WINDOW),
        prefill_chunk=1,
    )
