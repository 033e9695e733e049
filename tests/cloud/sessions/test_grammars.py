"""Who gets a grammar on the server, and who is told why not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cloud.errors import BadOpenError, CapacityError, MismatchError
from cloud.sessions import grammars as room
from cloud.sessions.grammars import Grammars
from decoding.errors import GrammarError
from decoding.grammar import Grammar
from decoding.params import SamplingParams
from decoding.penalties import allows
from protos.messages import Open
from tests.cloud.parts import Parts, open_request
from tests.tiny_models import VOCAB, byte_ids, save_byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_byte_tokenizer(folder)
    return folder / "tokenizer.json"


def asking(text: str, *end_token_ids: int) -> Open:
    sampling = SamplingParams(grammar=Grammar(kind="regex", text=text))
    return open_request(sampling=sampling, prompt_tokens=1, end_token_ids=end_token_ids or (2,))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_session_gets_the_masks_of_its_grammar(tokenizer: Path) -> None:
    async def scenario() -> None:
        constrain = await Grammars(tokenizer, vocab_size=VOCAB).constrain(asking("ab"))
        assert constrain is not None
        a, b = byte_ids("ab")
        masks = constrain([], [a, a]).result(timeout=20)
        assert [allows(masks[0], a), allows(masks[0], b), allows(masks[1], b)] == [
            True,
            False,
            True,
        ]
        assert len(masks) == 2
        with pytest.raises(GrammarError):
            constrain([b], []).result(timeout=20)

    run(scenario)


def test_a_session_without_a_grammar_needs_no_tokenizer() -> None:
    async def scenario() -> None:
        assert await Grammars(None, vocab_size=VOCAB).constrain(open_request()) is None

    run(scenario)


def test_a_bundle_of_an_older_version_refuses_grammars_and_names_the_cure() -> None:
    async def scenario() -> None:
        with pytest.raises(MismatchError, match="build the bundle again"):
            await Parts().admission.admit(asking("a", 3))

    run(scenario)


@pytest.mark.parametrize(
    ("text", "end", "reason"), [("(((", 2, "the regex does not work"), ("a", VOCAB, "names none")]
)
def test_a_grammar_that_cannot_work_is_the_clients_fault(
    tokenizer: Path, text: str, end: int, reason: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(BadOpenError, match=reason):
            await Grammars(tokenizer, vocab_size=VOCAB).constrain(asking(text, end))

    run(scenario)


def test_a_tokenizer_that_cannot_be_read_is_not_the_clients_fault(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    async def scenario() -> None:
        with pytest.raises(MismatchError, match="takes no grammars"):
            await Grammars(tmp_path / "tokenizer.json", vocab_size=VOCAB).constrain(asking("a"))

    run(scenario)


def test_only_so_many_grammars_are_read_at_once(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_COMPILING", 2)

    async def scenario() -> None:
        made = Grammars(tokenizer, vocab_size=VOCAB)
        answers = await asyncio.gather(
            *(made.constrain(asking("a+")) for _ in range(3)), return_exceptions=True
        )
        assert [isinstance(answer, CapacityError) for answer in answers] == [False, False, True]
        assert await made.constrain(asking("a+")) is not None

    run(scenario)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (open_request(sampling=SamplingParams(logit_bias={32: 1.0})), "token 32: the vocabulary"),
        (open_request(end_token_ids=(40,)), "token 40: the vocabulary"),
        (open_request(prompt_tokens=17), "a prompt of 17 tokens in a session of 16"),
    ],
)
def test_an_open_names_tokens_of_the_model_and_a_prompt_that_fits(
    request_: Open, reason: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(BadOpenError, match=reason):
            await Parts().admission.admit(request_)

    run(scenario)


@pytest.mark.parametrize(
    "other", [open_request(prompt_tokens=3), open_request(end_token_ids=(1,)), asking("a")]
)
def test_a_session_is_not_continued_under_another_grammar_or_prompt(other: Open) -> None:
    async def scenario() -> None:
        parts = Parts()
        held = parts.hold(await parts.admission.admit(open_request()), open_request())
        assert held.can_continue_as(open_request())
        assert not held.can_continue_as(other)

    run(scenario)
