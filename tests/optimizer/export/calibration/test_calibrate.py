"""Calibration and certification on a tiny random model: the hooks see what transformers sees."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import numpy as np
import pytest

from codec.arrays import I64

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from codec.ladder import Ladder  # noqa: E402
from codec.levels.tabq import TabqCodec  # noqa: E402
from optimizer.errors import BuildError  # noqa: E402
from optimizer.export.calibration import calibrate as calibrate_module  # noqa: E402
from optimizer.export.calibration.calibrate import (  # noqa: E402
    calibrate,
    calibration_text,
    collect_states,
    held_apart,
    listed_tokens,
)
from optimizer.export.calibration.hidden_states import back_logits, hidden_and_logits  # noqa: E402
from optimizer.export.calibration.measure import HeldOutRows  # noqa: E402
from optimizer.export.calibration.split_fit import States  # noqa: E402
from optimizer.export.calibration.text import OWN_TEXT, SHIPPED_TEXT  # noqa: E402
from optimizer.export.certify.certificate import certify, measure, text_windows  # noqa: E402
from optimizer.export.layers import layered_model  # noqa: E402
from optimizer.export.layers.layered_model import LayeredModel  # noqa: E402
from optimizer.export.layers.passes import drawn_tokens  # noqa: E402
from optimizer.export.layers.tensor_source import ModelTensors  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

D, VOCAB, LAYERS = 32, 64, 4


@pytest.fixture(scope="module")
def tiny() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=D,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["kept", "streamed"])
def layered(
    request: pytest.FixtureRequest, tiny: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> LayeredModel:
    """The same model with all layers in memory, and with one at a time."""
    folder = tmp_path_factory.mktemp("rows")
    return LayeredModel(ModelTensors(tiny), folder=folder, keep=request.param == "kept")


@pytest.fixture(scope="module")
def windows() -> I64:
    ids = np.random.default_rng(0).zipf(1.3, 20_000) % VOCAB
    return text_windows(ids.tolist(), window=64, max_tokens=4096)


@pytest.mark.parametrize("split", range(LAYERS + 1))
def test_hidden_states_are_transformers_own_and_the_back_goes_on_from_them(
    tiny: PreTrainedModel, split: int
) -> None:
    tokens = torch.arange(20) % VOCAB
    with torch.no_grad():
        whole = tiny(tokens[None], output_hidden_states=True)
    hidden, logits = hidden_and_logits(tiny, split, tokens)
    if split < LAYERS:  # transformers' last entry is already normed
        torch.testing.assert_close(hidden, whole.hidden_states[split][0])
    torch.testing.assert_close(logits, whole.logits[0])
    torch.testing.assert_close(back_logits(tiny, split, hidden, tokens), whole.logits[0])
    torch.testing.assert_close(tiny(tokens[None]).logits, whole.logits)  # nothing left behind


def test_gradients_are_those_of_the_sampled_log_likelihood(
    tiny: PreTrainedModel, layered: LayeredModel
) -> None:
    """Against finite differences of log p(y), with y drawn as the collector draws it."""
    ids = (np.arange(24) * 7 % VOCAB).reshape(1, -1)
    states = collect(layered, [2], ids)[2]
    tokens = torch.from_numpy(ids[0])
    hidden, logits = hidden_and_logits(tiny, 2, tokens)
    labels = drawn_tokens(logits.softmax(-1), torch.Generator().manual_seed(3))

    def score(state: Tensor) -> float:
        logits = back_logits(tiny.double(), 2, state.double(), tokens)
        return float(logits.log_softmax(-1).gather(1, labels).sum())

    try:
        for row, channel in ((0, 3), (10, 0), (23, 31)):
            nudge = torch.zeros(hidden.shape, dtype=torch.float64)
            nudge[row, channel] = 1e-2  # the model's norms round to float32, so not less
            slope = (score(hidden + nudge) - score(hidden - nudge)) / 2e-2
            # Streamed layers are computed again from rows of 16 bits.
            near = 0.02 if layered.keeps else 0.1
            assert states.gradient[row, channel] == pytest.approx(slope, rel=near, abs=near)
    finally:
        tiny.float()


def test_splits_share_passes_and_get_what_each_would_alone(
    layered: LayeredModel, windows: I64
) -> None:
    together = collect(layered, [1, 3], windows[:2])
    for split in (1, 3):
        alone = collect(layered, [split], windows[:2])[split]
        np.testing.assert_allclose(together[split].hidden, alone.hidden, atol=1e-5)
        np.testing.assert_allclose(together[split].gradient, alone.gradient, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            together[split].listed_features, alone.listed_features, atol=1e-5
        )


def test_a_token_alone_is_what_follows_the_commonest_one(
    tiny: PreTrainedModel, layered: LayeredModel
) -> None:
    """The shared keys and values of the first token give what the pair of tokens gives."""
    states = collect(layered, [2], np.array([[5, 9, 5, 7]]))[2]
    for at, token in enumerate(states.listed_ids):
        if token in (0, 7, VOCAB - 1):
            pair, _ = hidden_and_logits(tiny, 2, torch.tensor([5, int(token)]))
            np.testing.assert_allclose(states.listed_features[at], pair[1].numpy(), atol=1e-5)


def collect(model: LayeredModel, splits: list[int], ids: I64) -> dict[int, States]:
    found = collect_states(model, splits=splits, windows=ids, seed=3, progress=lambda *_: None)
    return {split: collected.states() for split, collected in found.items()}


@pytest.mark.parametrize(("fast", "near"), [(False, 1e-3), (True, 0.02)])
def test_losses_are_those_certification_measures(
    tiny: PreTrainedModel,
    layered: LayeredModel,
    windows: I64,
    monkeypatch: pytest.MonkeyPatch,
    fast: bool,
    near: float,
) -> None:
    """In float32 exactly; in bfloat16, whose own cost is taken off, nearly."""
    monkeypatch.setattr(layered_model, "has_fast_bfloat16", lambda device: fast)
    codec = TabqCodec(hidden_size=D, delta=0.2)
    rows = np.stack([hidden_and_logits(tiny, 2, torch.from_numpy(w))[0] for w in windows[:2]])
    held = HeldOutRows(windows=windows[:2], hidden=rows)
    (found,) = held.losses(layered, 2, [codec], lambda *_: None)

    class Sent:
        name = "tabq"

        def send(self, rows: np.ndarray, ids: I64) -> tuple[np.ndarray, int]:
            return codec.decode(codec.encode(rows, ids).payload, len(rows), ids), 0

    _, (certified,) = measure(layered, [Sent()], split=2, windows=windows[:2])
    assert found == pytest.approx(certified.kl, rel=near)
    assert found > 1e-4


def test_held_out_windows_are_not_fitted_to() -> None:
    windows = np.arange(40).reshape(20, 2)
    fitted, held = held_apart(windows)
    assert len(held) == 2
    assert len(fitted) == 18
    assert sorted([*fitted.reshape(-1), *held.reshape(-1)]) == list(range(40))
    assert [len(part) for part in held_apart(windows[:7])] == [7, 0]
    assert [len(part) for part in held_apart(np.zeros((100, 2), dtype=np.int64))] == [96, 4]


def test_a_calibrated_ladder_certifies_in_order(
    layered: LayeredModel, windows: I64, tmp_path: Path
) -> None:
    path = tmp_path / "split-2.tables"
    digest = calibrate(layered, split=2, out=path, token_ids=windows.reshape(-1).tolist())
    ladder = Ladder.load(path, hidden_size=D)
    assert ladder.tables_sha256 == digest
    assert ladder.names == ("lossless", "q1", "q2", "q3", "q4", "q5")
    certificate = certify(layered, ladder, split=2, windows=windows[:8], adapt=True)
    found = {level.name: level for level in certificate.levels}
    # Sessions are certified beside: about the same loss, whatever rows have in common here.
    assert [level.name for level in certificate.adapted] == ["q1", "q2", "q3", "q4", "q5"]
    for level in certificate.adapted:
        assert level.kl == pytest.approx(found[level.name].kl, rel=0.3)
        assert level.bits_per_element < found[level.name].bits_per_element + 0.1
    assert found["lossless"].kl == pytest.approx(0, abs=1e-6)
    assert found["lossless"].perplexity_rise_pct == pytest.approx(0, abs=1e-4)
    rungs = [found[name] for name in ladder.names]
    assert [r.kl for r in rungs] == sorted(r.kl for r in rungs)
    bits = [r.bits_per_element_prefill for r in rungs]
    assert bits == sorted(bits, reverse=True)
    # Levels are aimed at these losses by measuring on an eighth of the text.
    for name, target in (("q1", 0.001), ("q3", 0.0065), ("q4", 0.02), ("tabq2", 0.008)):
        assert target / 1.6 < found[name].kl < 1.6 * target


def test_without_text_a_model_in_memory_writes_its_own(
    layered: LayeredModel, tmp_path: Path
) -> None:
    if not layered.keeps:
        with pytest.raises(BuildError, match="too large to be in memory"):
            calibrate(layered, split=1, out=tmp_path / "a", num_tokens=1024)
        return
    first, second = (
        calibrate(layered, split=1, out=tmp_path / name, num_tokens=1024) for name in ("a", "b")
    )
    assert first == second


def test_too_little_text_is_one_clear_error(layered: LayeredModel, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="one window needs 512"):
        calibrate(layered, split=1, out=tmp_path / "a", token_ids=[1, 2, 3])


def test_listed_tokens_are_the_frequent_ones_then_low_ids() -> None:
    windows = np.array([[9, 9, 9, 7, 7, 5]])
    assert listed_tokens(windows, 10, 2).tolist() == [7, 9]
    assert listed_tokens(windows, 10, 5).tolist() == [0, 1, 5, 7, 9]


def test_predictions_can_be_of_fewer_tokens(layered: LayeredModel, windows: I64) -> None:
    def known(most: int | None) -> list[int]:
        found = collect_states(
            layered, splits=[1], windows=windows[:2], seed=0, known_tokens=most,
            progress=lambda *_: None,
        )  # fmt: skip
        return found[1].listed_ids.tolist()

    assert known(None) == known(1000) == list(range(VOCAB))
    assert len(known(20)) == 20
    frequent = np.bincount(windows[:2].reshape(-1), minlength=VOCAB).argmax()
    assert frequent in known(20)


def test_a_model_that_could_write_its_text_may_take_the_shipped_one(
    layered: LayeredModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_module, "shipped_ids", lambda tokenizer, count: [1] * count)
    source = Mock()
    ids, text = calibration_text(layered, source, given=None, num_tokens=1024, writes=False)
    assert (ids, text) == ([1] * (1024 + 4 * 512), SHIPPED_TEXT)
    ids, text = calibration_text(layered, source, given=None, num_tokens=1024)
    assert text == (OWN_TEXT if layered.keeps else SHIPPED_TEXT)
