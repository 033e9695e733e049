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

from optimizer.artifacts.bundle import FRONT_NAME
from optimizer.artifacts.plan import LAYER_BITS, ModelRef, Partition, Plan
from optimizer.artifacts.sensitivity import Sensitivity
from optimizer.errors import BuildError
from optimizer.export.certify.certificate import Windows
from optimizer.export.front.float_front import empty_cache_inputs
from optimizer.export.front.front_graph import float_front, front_at
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import finish, states_at
from optimizer.export.layers.rows_on_disk import HiddenRows
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
    model: LayeredModel,
    *,
    split: int,
    windows: Windows,
    progress: Progress | None = None,
) -> Sensitivity:
    """Losses of every front layer on text `windows` [N, W].

    Front and back run split + 1 times over the text.
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
    model: LayeredModel, split: int, rows: Rows | None, windows: Windows
) -> float:
    """Mean over the next tokens of windows [N, W], in nats.

    rows: float32 [N, W, D] from which the back continues (None: the model's own hidden state).
    """
    if rows is None:
        entered = states_at(model, [split], windows, _quiet)[split]
    else:
        entered = model.new_rows(*windows.shape)
        entered.write(0, torch.from_numpy(rows))
    finish(model, entered, split, _quiet, what="")
    found = [
        _window_nll(model, entered, at, torch.from_numpy(ids)) for at, ids in enumerate(windows)
    ]
    entered.close()
    model.drop_head()
    return float(np.mean(found))


def _window_nll(model: LayeredModel, rows: HiddenRows, at: int, tokens: torch.Tensor) -> float:
    """Mean NLL of the next tokens of one window, from its rows after the last layer."""
    last = rows.read(at, at + 1)[0]
    total = 0.0
    with torch.no_grad():
        for begin, end in model.logit_pieces(len(tokens) - 1):
            log_probs = model.logits(last[begin:end]).log_softmax(-1).cpu()
            total -= float(log_probs.gather(1, tokens[begin + 1 : end + 1, None]).double().sum())
    return total / (len(tokens) - 1)


def _quiet(what: str, done: int, total: int) -> None:
    """A progress that is told elsewhere."""


def _plan(source: ModelSource, split: int) -> Plan:
    return Plan(
        model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
        partition=Partition(split=split, front_bits=min(LAYER_BITS), back_bits=32),
        back_start=split,
        kv_bits=32,
        level="lossless",
        max_tokens=min(source.geometry.context_length, LONGEST_WINDOW),
        prefill_chunk=1,
        weight_blocks="large",
    )
