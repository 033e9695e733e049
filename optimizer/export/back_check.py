"""Whether the back that was written computes what the model's layers compute, layer by layer.

A few rows of a text go through transformers' layers, one at a time, with the weights that the back
is meant to hold. The server's own code gets what each layer got, and must give what it gave. So a
fault in a file, in attention, in positions or in a factor stops the build, and is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from optimizer.artifacts.plan import Plan
from optimizer.errors import BuildError
from optimizer.export.back import (
    back_name,
    back_names,
    back_tensor_bits,
    holds_transposed,
    stored_tensors,
)
from optimizer.export.front.probe import LARGEST_ERROR, row_errors
from optimizer.export.front.sample_text import SAMPLE_TEXT
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME
from optimizer.families import family_of, position_limit

_HEAD_BIAS: Final = HEAD_NAME.removesuffix("weight") + "bias"
BACK_CHECK_NAME: Final = "back_check.json"
CHECKED_ROWS: Final = 32
CHECKED_TOKENS: Final = 64  # of the head: logits of the vocabulary's first tokens
# With weights of 8 bits the server multiplies integers, inputs in two digits: about 15 bits.
LARGEST_INTEGER_ERROR: Final = 1e-2


class TriedBack(Protocol):
    """A back as the server computes it (`cloud.engine.served_back`)."""

    def entering(self, token_ids: Tensor) -> Tensor | None:
        """float32 [T, D] for int64 [T]; None where the back holds no embedding."""

    def after(self, layer: int, rows: Tensor) -> Tensor:
        """What a layer gives of rows [T, D]."""

    def logits(self, rows: Tensor, num_tokens: int) -> Tensor:
        """[T, num_tokens] of rows [T, D] that the last layer gave."""


# Opens the back in a folder, whose first layer has this number.
OpenBack = Callable[[Path, int], TriedBack]


def check_back(source: ModelSource, plan: Plan, folder: Path, open_back: OpenBack) -> None:
    """Compare the back of `plan` in `folder` with transformers', and write what was found there.

    Raises BuildError where a layer, the embedding or the head departs.
    """
    back = open_back(folder, plan.back_start)
    limit = min(position_limit(source.config), CHECKED_ROWS)
    ids = torch.tensor(source.load_tokenizer()(SAMPLE_TEXT)["input_ids"][:limit])
    stored = _AsStored(source, plan)
    model = LayeredModel(stored, folder=None, keep=False, attention="eager")
    judge = _Judge(source, plan)
    leaving = torch.empty(0)
    for index, entering, leaving in model.states_of(ids[None], model.num_layers):
        if index == 0 and plan.back_start == 0:
            rows = back.entering(ids)
            if rows is not None:
                judge.compare("embedding", rows, entering[0])
        if index >= plan.back_start:
            judge.compare(f"layer {index}", back.after(index, entering[0]), leaving[0])
    with torch.no_grad():
        expected = model.logits(leaving[0], exact=True)
    judge.compare("head", back.logits(leaving[0], expected.shape[1]), expected)
    text = json.dumps(judge.record(len(ids)), indent=1)
    (folder / BACK_CHECK_NAME).write_text(text + "\n", encoding="utf-8")


class _Judge:
    """Compares rows and remembers errors.

    A row is sent to other experts where two are nearly alike and float noise decides. With experts
    the row in the middle is therefore what counts, and the worst row elsewhere.
    """

    def __init__(self, source: ModelSource, plan: Plan) -> None:
        family = family_of(source.config)
        self._by_median = family is not None and family.experts is not None
        self._place = str(source.place)
        self._bits = plan.partition.back_bits
        self._largest = LARGEST_INTEGER_ERROR if self._bits == 8 else LARGEST_ERROR
        self._errors: dict[str, float] = {}

    def compare(self, part: str, got: Tensor, expected: Tensor) -> None:
        """Raises BuildError where they differ by more than the arithmetic does."""
        errors = row_errors(got, expected)
        error = float(errors.median() if self._by_median else errors.max())
        self._errors[part] = error
        if not error <= self._largest:
            raise BuildError(
                f"{self._place}: {part} of the server's back departs from transformers' by "
                f"{error:.1e} of a row, more than {self._largest:.0e}; this model cannot be served "
                "(please report it)"
            )

    def record(self, num_rows: int) -> dict[str, Any]:
        """The errors as the bundle keeps them."""
        row = "median" if self._by_median else "largest"
        return {
            "what": f"{row} relative error of a row against transformers' layer with the weights "
            f"that a back of {self._bits} bits holds",
            "rows": num_rows,
            "worst": max(self._errors.values()),
            "parts": self._errors,
        }


class _AsStored:
    """A model's tensors with the values that the back holds; of the head, its first tokens."""

    def __init__(self, source: ModelSource, plan: Plan) -> None:
        self.config: Any = source.config
        self.place: Path = source.place
        # The head is read by its own name, also where it is the embedding.
        self.tensor_names: Set[str] = {*source.tensor_names, HEAD_NAME}
        self._source = source
        self._bits = plan.partition.back_bits
        self._names = frozenset(back_names(source, plan))
        # The device's embedding is its own affair: rows enter the server's first layer.
        self._as_they_are = {EMBEDDING_NAME} if plan.back_start else set()

    def read(self, name: str) -> Tensor:
        """See TensorSource."""
        if name == HEAD_NAME:
            stored = HEAD_NAME if HEAD_NAME in self._source.tensor_names else EMBEDDING_NAME
            return self._kept(HEAD_NAME, self._source.read(stored)[:CHECKED_TOKENS])
        tensor = self._source.read(name)
        if name == _HEAD_BIAS:
            tensor = tensor[:CHECKED_TOKENS]
        if name not in self._names or name in self._as_they_are:
            return tensor
        return self._kept(back_name(name, self._names), tensor)

    def _kept(self, kept: str, tensor: Tensor) -> Tensor:
        bits = back_tensor_bits(kept, self._bits)
        transposed = holds_transposed(self.config)
        parts = dict(stored_tensors(kept, tensor, bits, transposed=transposed))
        if kept in parts:
            return parts[kept]
        values = parts[f"{kept}.int8"].float() * parts[f"{kept}.scale"][..., None]
        return values.transpose(1, 2) if transposed and values.ndim == 3 else values
