"""Every family, kind of positions and shape: a split model gives what the whole model gives.

Front and back run in this process, without sockets. `docs/reference/models.md` lists the cases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kv.pool import KvPool
from edge.device.front import FrontEngine
from optimizer.export.back import write_back
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.end_to_end.greedy import generate
from tests.model_cases import POSITIONS, SHAPES, Case
from tests.optimizer.export.plans import make_front, make_plan
from tests.tiny_models import FRONT_FAMILIES, make_tiny_model

PROMPT = 26
TOKENS = 12
TOLERANCE = 2e-5  # of logits, relative to the largest


class SplitModel:
    """A front and a back of one model; `feed` gives the logits of the last token, [V]."""

    def __init__(self, source: ModelSource, split: int, folder: Path) -> None:
        plan = make_plan(source, split, max_tokens=48, back_start=0)
        self.front: FrontEngine = make_front(source, plan, folder / f"front-{split}")
        self._lease: Any = None
        if split < source.geometry.num_layers:
            back = folder / "back"
            if not back.exists():
                back.mkdir()
                write_back(source, plan, back)
            self._engine = BackEngine(load_back(back, first_layer=0))
            pool = KvPool(self._engine.kv_shape, limit_bytes=1 << 22, device=torch.device("cpu"))
            self._lease = pool.lease(split=split, max_tokens=48)

    def feed(self, token_ids: list[int]) -> Tensor:
        rows = torch.from_numpy(self.front.forward(np.array(token_ids, dtype=np.int64)))
        if self._lease is None:
            return rows[-1]
        entry = BatchEntry(lease=self._lease, rows=rows, num_logits=1)
        return self._engine.forward([entry])[0][-1]

    def rollback(self, num_tokens: int) -> None:
        self.front.rollback(num_tokens)
        if self._lease is not None:
            self._lease.length = num_tokens


def check_every_way(source: ModelSource, whole: Any, splits: list[int], folder: Path) -> None:
    """Prefill in parts, a draft that is rolled back, and steps; at each split."""
    vocabulary = source.geometry.vocab_size
    ids = np.random.default_rng(3).integers(4, vocabulary, size=PROMPT + 5)
    prompt, draft = [int(token) for token in ids[:PROMPT]], [int(token) for token in ids[PROMPT:]]
    answer = list(generate(whole, prompt, TOKENS))
    with torch.inference_mode():
        expected = whole(torch.tensor([[*prompt, *answer]])).logits[0, PROMPT - 1 :]
    for split in splits:
        model = SplitModel(source, split, folder)
        model.feed(prompt[:17])
        logits = model.feed(prompt[17:])
        model.feed(draft)
        model.rollback(PROMPT)
        tokens = []
        for step in range(TOKENS):
            error = float((logits - expected[step]).abs().max() / expected[step].abs().max())
            assert error < TOLERANCE, f"split {split}, token {step}: {error:.1e}"
            tokens.append(int(logits.argmax()))
            logits = model.feed([answer[step]])
        assert tokens == answer, f"split {split}"


def run_case(family: str, changes: dict[str, Any], splits: list[int] | None, root: Path) -> None:
    whole: Any = make_tiny_model(family, root / "model", **changes)
    whole.set_attn_implementation("eager")  # the plainest: soft caps and windows spelled out
    source = open_source(root / "model")
    layers = source.geometry.num_layers
    check_every_way(source, whole, splits or list(range(layers + 1)), root)


@pytest.mark.parametrize("family", FRONT_FAMILIES)
def test_a_split_model_of_each_family_gives_the_tokens_of_the_whole(
    tmp_path: Path, family: str
) -> None:
    run_case(family, {}, None, tmp_path)


@pytest.mark.parametrize("case", POSITIONS.values(), ids=POSITIONS)
def test_every_kind_of_positions_is_computed_alike_on_both_sides(
    tmp_path: Path, case: Case
) -> None:
    run_case(case.family, case.changes, [0, 3, 4], tmp_path)


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
def test_every_shape_is_computed_alike_on_both_sides(tmp_path: Path, case: Case) -> None:
    run_case(case.family, case.changes, [0, 2, 4], tmp_path)
