"""What a bundle has for devices that compute in 16 bits: a second graph of each segment of a front
with 16-bit weights, over the same file of weights, and rows of text to try them with.

    edge/front.fp16.onnx    (edge/front-N.fp16.onnx for a further segment)
    edge/front.fp16.npz     token_ids int64 [T]; rows float32 [N, W], the model's own in float32:
                            after the last N of these tokens, W = D; logits, W = V, where the whole
                            model is on the edge

A device or a version that does not know them uses the other graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from optimizer.artifacts.bundle import Bundle, front_names
from optimizer.artifacts.plan import Plan
from optimizer.errors import BundleError

HALF_ROWS_NAME: Final = "edge/front.fp16.npz"
TRIED_TOGETHER: Final = 12  # tokens of the first step
TRIED_ALONE: Final = 4  # tokens after it, one at a time


class HalfRows(NamedTuple):
    """token_ids: int64 [T]. rows: float32 [N, W], see the module's docstring."""

    token_ids: npt.NDArray[np.int64]
    rows: npt.NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write the file."""
        np.savez(path, token_ids=self.token_ids, rows=self.rows)


def may_have_halves(plan: Plan) -> bool:
    """Whether a front of `plan` can have products of 16 bits: 16-bit weights that nobody asked to
    compute exactly. Experts stay in 32 bits, and are nearly all of their models' weights. Streamed
    layers are packed in 32 bits."""
    is_plain = not (plan.exact_front or plan.model.geometry.num_experts or plan.streamed_layers)
    return plan.partition.front_bits == 16 and plan.partition.split > 0 and is_plain


def half_name(name: str) -> str:
    """The second graph's file beside the graph `name`, such as front.onnx."""
    return f"{name.removesuffix('.onnx')}.fp16.onnx"


def half_rows_of(bundle: Bundle) -> HalfRows | None:
    """The rows to try a bundle's 16-bit graphs with; None where it does not have all of these
    files. Raises BundleError for rows that are not readable."""
    names = [f"edge/{half_name(name)}" for name in front_names(bundle.plan)]
    if not all(bundle.has(name) for name in (*names, HALF_ROWS_NAME)):
        return None
    path = bundle.path(HALF_ROWS_NAME)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as values:
            found = HalfRows(values["token_ids"], values["rows"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise BundleError(f"{path}: not readable ({error})") from error
    if not _fits(found, bundle.plan):
        raise BundleError(f"{path}: not the rows of this front (build the bundle again)")
    return found


def _fits(found: HalfRows, plan: Plan) -> bool:
    ids, rows = found
    width = (
        plan.model.geometry.vocab_size if plan.edge_is_whole else plan.model.geometry.hidden_size
    )
    return bool(
        ids.dtype == np.int64
        and ids.ndim == 1
        and 0 < len(ids) <= min(plan.max_tokens, TRIED_TOGETHER + TRIED_ALONE)
        and 0 <= ids.min() <= ids.max() < plan.model.geometry.vocab_size
        and rows.dtype == np.float32
        and rows.ndim == 2
        and 0 < len(rows) <= len(ids)
        and rows.shape[1] == width
    )
