"""A whole model on the device: the same tokens as a loop written out, and traces without a link."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from decoding.errors import GrammarError
from decoding.params import SamplingParams
from edge.errors import InputError
from edge.generation.local import LocalGeneration
from edge.step_trace import LOCAL_LEVEL, StepTrace
from tests.edge.fakes import VOCAB, FakeFront, expected_tokens, token_of
from tests.edge.generation.remote import PROMPT, ManualTime


class WholeModel(FakeFront):
    """Gives the logits after the last token, [1, V]: one token stands out."""

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        super().forward(token_ids)
        logits = np.zeros((1, VOCAB), dtype=np.float32)
        logits[0, token_of(self.cache[-1])] = 50.0
        return logits


def run(chunk_tokens: int, count: int) -> tuple[list[int], list[StepTrace]]:
    generation = LocalGeneration(
        front=WholeModel(),
        sampling=SamplingParams(),
        chunk_tokens=chunk_tokens,
        clock=ManualTime().clock(),
    )
    steps: list[StepTrace] = []
    tokens = [token.token_id for token in islice(generation.tokens(PROMPT, steps.append), count)]
    return tokens, steps


@pytest.mark.parametrize("chunk_tokens", [1, 4, 10, 64])
def test_the_tokens_do_not_depend_on_the_chunks(chunk_tokens: int) -> None:
    tokens, steps = run(chunk_tokens, 12)
    assert tokens == expected_tokens(PROMPT, 12)
    prefill = [step for step in steps if step.phase == "prefill"]
    assert sum(step.num_rows for step in prefill) == len(PROMPT)
    assert max(step.num_rows for step in prefill) <= chunk_tokens


def test_nothing_is_sent_and_only_the_last_chunk_brings_a_token() -> None:
    _, steps = run(4, 3)
    assert [step.num_new_tokens for step in steps] == [0, 0, 1, 1, 1]
    assert {step.level for step in steps} == {LOCAL_LEVEL}
    assert sum(step.uplink_bytes + step.downlink_bytes for step in steps) == 0


def test_cancelling_ends_it_before_the_next_token() -> None:
    generation = LocalGeneration(
        front=WholeModel(), sampling=SamplingParams(), chunk_tokens=64, clock=ManualTime().clock()
    )
    tokens = generation.tokens(PROMPT, lambda step: None)
    next(tokens)
    generation.cancel()
    assert list(tokens) == []


def one(sampling: SamplingParams, **changes: Any) -> LocalGeneration:
    return LocalGeneration(
        front=WholeModel(),
        sampling=sampling,
        chunk_tokens=64,
        clock=ManualTime().clock(),
        **changes,
    )


def test_a_prompts_log_probabilities_come_with_the_first_token() -> None:
    tokens = one(SamplingParams(prompt_logprobs=1)).tokens(PROMPT, lambda step: None)
    first, second = next(tokens), next(tokens)
    assert [score.token_id for score in first.prompt_scores] == PROMPT[1:]
    for position, score in enumerate(first.prompt_scores, start=1):
        assert score.top[0].token_id == expected_tokens(PROMPT[:position], 1)[0]
    assert second.prompt_scores == ()


class FailingMatcher:
    def masks(self, answer: list[int]) -> list[Any]:
        raise GrammarError("the grammar takes too long")


def test_a_grammar_that_gives_up_is_an_input_error() -> None:
    tokens = one(SamplingParams(), matcher=FailingMatcher()).tokens(PROMPT, lambda step: None)
    with pytest.raises(InputError, match="takes too long"):
        next(tokens)


class OnlyToken:
    """Allows one token, and remembers which answers it was asked for."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id
        self.asked: list[list[int]] = []

    def masks(self, answer: list[int]) -> list[Any]:
        self.asked.append(list(answer))
        return [np.packbits(np.arange(VOCAB) == self.token_id, bitorder="little")]


@pytest.mark.parametrize("num_prompt", [None, 7])
def test_a_grammar_sees_the_answer_and_no_prompt(num_prompt: int | None) -> None:
    matcher = OnlyToken(31)
    generation = one(SamplingParams(), matcher=matcher, num_prompt=num_prompt)
    tokens = generation.tokens(PROMPT, lambda step: None)
    assert [token.token_id for token in islice(tokens, 2)] == [31, 31]
    before = [] if num_prompt is None else PROMPT[num_prompt:]
    assert matcher.asked == [before, [*before, 31]]
