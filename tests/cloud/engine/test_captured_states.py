"""What a draft head reads of a step: the sessions' own rows at each layer; the step is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import load_back
from cloud.engine.batch_entry import BatchEntry
from cloud.kernel import library as native
from cloud.kv.pool import KvPool
from tests.cloud.tiny_bundle import quantized_back, save_back
from tests.tiny_models import make_tiny_model

SPLITS = (2, 0, 1)  # in another order than the step's


def stepped(engine: BackEngine, *, tapped: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of sessions at three splits in one step, and the states that their taps were told."""
    pool = KvPool(engine.kv_shape, limit_bytes=1 << 24)
    generator = torch.Generator().manual_seed(5)
    told: list[list[Tensor]] = [[] for _ in SPLITS]
    batch = [
        BatchEntry(
            lease=pool.lease(split=split, max_tokens=16),
            rows=torch.randn(3 + at, engine.hidden_size, generator=generator),
            num_logits=1,
            tap=told[at].append if tapped else None,
        )
        for at, split in enumerate(SPLITS)
    ]
    logits = engine.forward(batch)
    return logits, [torch.cat(parts) if parts else torch.empty(0) for parts in told]


@pytest.fixture(params=["torch", "native"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> BackEngine:
    save_back(make_tiny_model("llama", tmp_path / "source"), tmp_path / "cloud")
    if request.param == "native":
        if native.load() is None:
            pytest.skip("no compiled kernel here")
        quantized_back(tmp_path / "cloud")
    made = BackEngine(load_back(tmp_path / "cloud", first_layer=0))
    assert made.is_native == (request.param == "native")
    return made


def test_states_are_the_sessions_own_at_every_layer(engine: BackEngine) -> None:
    plain, nothing = stepped(engine, tapped=False)
    assert all(not len(one) for one in nothing)
    engine.capture((2, 3, engine.num_layers))
    logits, told = stepped(engine, tapped=True)
    assert all(torch.equal(one, other) for one, other in zip(logits, plain, strict=True))
    width = engine.hidden_size
    for at, states in enumerate(told):
        assert states.shape == (3 + at, 3 * width)
        # The last layer's states make the logits, and those before lead to them.
        torch.testing.assert_close(engine.logits(states[-1:, 2 * width :]), logits[at])
        pool = KvPool(engine.kv_shape, limit_bytes=1 << 24)
        lease = pool.lease(split=2, max_tokens=16)
        again = engine.hidden(lease, states[:, :width])
        torch.testing.assert_close(again, states[:, 2 * width :], atol=1e-4, rtol=1e-4)
    # A session that enters at layer 2 enters with its own rows.
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(told[0][:, :width], torch.randn(3, width, generator=generator))
