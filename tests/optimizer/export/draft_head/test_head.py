"""The draft head: it learns what it is taught, a run that broke off goes on, ONNX says the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch

from edge.draft.head import FACTS_NAME, HEAD_NAME, HeadDrafter, HeadModel
from optimizer.artifacts.bundle import Bundle, FileRecord
from optimizer.export.draft_head.corpus import QUESTION_TOKENS, make_corpus
from optimizer.export.draft_head.head import DraftHead, HeadShape, frequent_tokens
from optimizer.export.draft_head.head_builder import HeadOptions, run_digest
from optimizer.export.draft_head.onnx_export import export_head
from optimizer.export.draft_head.text import ChatOptions, template_parts, write_chats
from optimizer.export.draft_head.training import (
    Positions,
    TrainOptions,
    evaluate,
    likeliest_tokens,
    train,
)
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import open_source
from tests.tiny_models import make_tiny_model

WIDTH, VOCAB, KNOWN = 64, 200, 96


def teacher(count: int, seed: int) -> tuple[Positions, torch.Tensor]:
    """Rows whose final state is a fixed nonlinear function of them, and the model's head."""
    fixed = torch.Generator().manual_seed(1)
    embedding = torch.randn(VOCAB, WIDTH, generator=fixed)
    inner, outer = (torch.randn(WIDTH, WIDTH, generator=fixed) / 8 for _ in range(2))
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    states = (rows @ inner).abs() @ outer * 2
    halves = states.numpy().astype(np.float16)
    return (
        Positions(
            rows=rows.numpy().astype(np.float16),
            states=halves,
            best=likeliest_tokens(halves, embedding),
        ),
        embedding,
    )


def new_head(positions: Positions, embedding: torch.Tensor) -> DraftHead:
    torch.manual_seed(0)
    tokens = torch.from_numpy(frequent_tokens(positions.best, vocab_size=VOCAB, count=KNOWN))
    shape = HeadShape(hidden_size=WIDTH, vocab_size=KNOWN, num_blocks=2, inner=96)
    return DraftHead(shape, tokens=tokens, embedding=embedding[tokens])


OPTIONS = TrainOptions(epochs=6, batch=128, lr=3e-3)


def test_training_teaches_more_than_the_linear_start(tmp_path: Path) -> None:
    positions, embedding = teacher(2048, seed=2)
    held_out, _ = teacher(512, seed=3)
    head = new_head(positions, embedding)
    score = train(
        head,
        positions,
        held_out,
        OPTIONS,
        checkpoint=tmp_path / "c.pt",
        progress=lambda stage, done, total: None,
    )
    start = new_head(positions, embedding)
    linear = train(
        start,
        positions,
        held_out,
        TrainOptions(epochs=0),
        checkpoint=tmp_path / "none.pt",
        progress=lambda stage, done, total: None,
    )
    assert score.num_positions == 512
    assert score.top1 > linear.top1 > 1 / KNOWN
    assert len(score.by_epoch) == OPTIONS.epochs
    assert score.by_epoch[-1] == score.top1
    assert sum(share for _, share, _ in score.sure) == pytest.approx(1.0)


def test_a_run_that_broke_off_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    positions, embedding = teacher(1024, seed=2)

    class StoppedError(Exception):
        pass

    def stop_in_the_third_epoch(stage: str, done: int, total: int) -> None:
        if done > total // 2:
            raise StoppedError

    def run(checkpoint: Path, progress: object) -> DraftHead:
        head = new_head(positions, embedding)
        train(head, positions, positions, OPTIONS, checkpoint=checkpoint, progress=progress)  # type: ignore[arg-type]
        return head

    whole = run(tmp_path / "whole.pt", lambda stage, done, total: None)
    with pytest.raises(StoppedError):
        run(tmp_path / "broken.pt", stop_in_the_third_epoch)
    resumed = run(tmp_path / "broken.pt", lambda stage, done, total: None)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


def test_the_exported_head_guesses_what_the_trained_one_does(tmp_path: Path) -> None:
    positions, embedding = teacher(2048, seed=2)
    head = new_head(positions, embedding)
    train(
        head,
        positions,
        positions,
        TrainOptions(epochs=3, batch=128, lr=3e-3),
        checkpoint=tmp_path / "c.pt",
        progress=lambda stage, done, total: None,
    )
    export_head(head, tmp_path / "small.onnx", head_bits=4)
    export_head(head, tmp_path / HEAD_NAME)
    assert (tmp_path / "small.onnx").stat().st_size < (tmp_path / HEAD_NAME).stat().st_size
    session = ort.InferenceSession(str(tmp_path / HEAD_NAME), providers=["CPUExecutionProvider"])
    rows = positions.rows[:256].astype(np.float32)
    token_ids, shares = session.run(None, {"hidden": rows})
    with torch.no_grad():
        logits = head(torch.from_numpy(rows))
    best = head.tokens[logits.argmax(-1)].numpy()
    assert (token_ids[:, 0] == best).mean() > 0.9  # 8-bit weights move few close calls
    assert (shares[:, 0] >= shares[:, 1]).all()
    top1 = (token_ids[:, 0] == positions.best[:256]).mean()
    assert top1 > 0.7 * evaluate(head, positions).top1

    (tmp_path / FACTS_NAME).write_text(
        '{"split": 1, "sure": [[0.0, 0.5, 0.25], [0.9, 0.5, 0.875]]}'
    )
    drafter = HeadDrafter(HeadModel(tmp_path))
    assert drafter.guesses() == ()
    drafter.extend([1, 2], rows[:2])
    guess, *others = drafter.guesses()
    assert [guess.token_id, *(other.token_id for other in others)] == token_ids[1].tolist()
    assert guess.kind == f"head-{min(int(10 * shares[1, 0]), 9)}"
    drafter.rollback(1)
    assert drafter.guesses() == ()  # the row of the token that is last now is gone


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_likeliest_token_is_that_of_the_whole_head(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.export.draft_head.training._HEAD_ROWS", 7)
    states = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float16)
    embedding = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).to(kind)
    embedding[31] = embedding[3]  # of equal ones the first counts
    logits = torch.from_numpy(states).float() @ embedding.float().T
    found = likeliest_tokens(states, embedding, batch=16)
    margin = logits.max(-1).values - logits[torch.arange(30), torch.from_numpy(found)]
    assert (margin <= 0.05).all()
    assert len(set(found.tolist())) > 5
    assert 31 not in found


def test_frequent_tokens_come_first_and_low_ids_fill_up() -> None:
    seen = np.array([7, 7, 7, 100, 100, 42])
    assert frequent_tokens(seen, vocab_size=200, count=5).tolist() == [0, 1, 7, 42, 100]


def test_chats_follow_the_template_and_states_predict_greedy_answers(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path)
    tokenizer = open_source(tmp_path).load_tokenizer()
    head, tail = template_parts(tokenizer)
    options = ChatOptions(question_tokens=6, window=60)
    chats = write_chats(model, tokenizer, options, count=4, seed=0)
    again = write_chats(model, tokenizer, options, count=4, seed=0)
    for chat, other in zip(chats, again, strict=True):
        tokens = chat.token_ids.tolist()
        assert tokens == other.token_ids.tolist()
        assert tokens[: len(head)] == head
        assert tail == tokens[tokens.index(tail[0], len(head)) :][: len(tail)]
        assert chat.states.shape == (len(tokens) - 1, model.config.hidden_size)
    embedding = model.get_output_embeddings().weight.detach()
    greedy = chats[0]
    predicted = likeliest_tokens(greedy.states, embedding)
    answer = slice(-8, None)
    assert (predicted[answer] == greedy.token_ids[1:][answer]).all()


def test_what_is_written_does_not_depend_on_the_room_for_kv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model("llama", tmp_path)
    tokenizer = open_source(tmp_path).load_tokenizer()
    options = ChatOptions(question_tokens=6, window=40)
    together = write_chats(model, tokenizer, options, count=5, seed=0)
    monkeypatch.setattr("optimizer.export.draft_head.text.KV_BYTES", 1)
    alone = write_chats(model, tokenizer, options, count=5, seed=0)
    assert len({tuple(chat.token_ids.tolist()) for chat in together}) > 1
    for chat, other in zip(together, alone, strict=True):
        assert chat.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(chat.states, other.states, atol=1e-2)


def test_given_questions_are_what_the_user_says(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path)
    tokenizer = open_source(tmp_path).load_tokenizer()
    head, tail = template_parts(tokenizer)
    questions = np.random.default_rng(0).integers(0, 300, (3, 17))
    chats = write_chats(
        model, tokenizer, ChatOptions(window=60), count=3, seed=0, questions=questions
    )
    for chat, question in zip(chats, questions.tolist(), strict=True):
        begin = [*head, *question, *tail]
        assert chat.token_ids[: len(begin)].tolist() == begin
        assert len(chat.token_ids) > len(begin)
    with torch.inference_mode():
        logits = model(torch.from_numpy(chats[0].token_ids[None, :-1])).logits[0]
    embedding = model.get_output_embeddings().weight.detach()
    got = torch.from_numpy(chats[0].states).float() @ embedding.T
    torch.testing.assert_close(got, logits, atol=2e-2, rtol=2e-2)


def test_a_second_run_takes_nothing_over_from_another_front_or_text(tmp_path: Path) -> None:
    plan, other = TrainOptions(), HeadOptions(num_tokens=9999)
    front = FileRecord(num_bytes=1, sha256="a" * 64)

    def bundle(record: FileRecord) -> Bundle:
        files = {"edge/front.onnx": record, "codec/split-1.tables": record}
        return Bundle(root=tmp_path, role="edge", plan=None, files=files)  # type: ignore[arg-type]

    same = run_digest(bundle(front), "text", HeadOptions())
    assert run_digest(bundle(front), "text", HeadOptions(training=replace(plan, epochs=9))) == same
    assert run_digest(bundle(front), "text", other) != same
    assert run_digest(bundle(front), "words", HeadOptions()) != same
    assert run_digest(bundle(replace(front, sha256="b" * 64)), "text", HeadOptions()) != same


def test_text_shards_are_found_again_by_their_words(tmp_path: Path) -> None:
    make_tiny_model("llama", tmp_path / "model")
    source = open_source(tmp_path / "model")
    model = LayeredModel(source, folder=tmp_path)
    tokenizer = source.load_tokenizer()
    asked: list[int] = []

    def rows(token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        asked.append(len(token_ids))
        return np.zeros((len(token_ids), model.config.hidden_size), dtype=np.float32)

    def corpus(first: int) -> list[int]:
        shards = make_corpus(
            tmp_path / "corpus", model=model, tokenizer=tokenizer, front=rows, num_tokens=512,
            text_ids=np.arange(first, first + QUESTION_TOKENS, dtype=np.int64) % 250,
            progress=lambda stage, done, total: None,
        )  # fmt: skip
        tokens: list[int] = shards[0].token_ids.tolist()
        return tokens

    text = corpus(3)
    assert 3 in text
    made = len(asked)
    assert (corpus(3), len(asked)) == (text, made)  # read, not made again
    assert corpus(4) != text
    assert len(asked) == made + 1  # one piece of text; the rest is the same
