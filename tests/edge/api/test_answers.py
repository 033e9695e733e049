"""OpenAI's objects of one answer, without a server: their fields, and log-probabilities."""

from __future__ import annotations

from typing import get_args

import pytest

from edge.api.answers import FINISH_REASONS, AnswerFormat
from edge.api.choices import ChoiceDelta
from edge.api.shape import Choice
from edge.generation.completion import TextPiece
from edge.generation.report import Completion
from edge.generation.stopping import FinishReason


def answer(*, is_chat: bool, with_logprobs: bool = False) -> AnswerFormat:
    return AnswerFormat(
        model="m",
        fingerprint="f",
        is_chat=is_chat,
        with_logprobs=with_logprobs,
    )


def completion(finish_reason: FinishReason = "stop") -> Completion:
    return Completion(
        text="hi",
        token_ids=(1, 22),
        logprobs=(-0.5, -1.0),
        finish_reason=finish_reason,
        finish_detail="",
        num_prompt_tokens=5,
        hidden_size=8,
        token_times_s=(0.1, 0.2),
        steps=(),
        reconnects=0,
        total_s=0.3,
    )


def test_every_way_to_end_has_a_name_that_clients_know() -> None:
    assert set(FINISH_REASONS) == set(get_args(FinishReason))
    assert set(FINISH_REASONS.values()) == {"stop", "length"}


@pytest.mark.parametrize("is_chat", [True, False])
def test_the_whole_answer_carries_text_counts_and_the_real_reason(is_chat: bool) -> None:
    body = answer(is_chat=is_chat).whole([Choice(completion=completion("deadline"), text="hi")])
    (choice,) = body["choices"]
    assert (choice["message"]["content"] if is_chat else choice["text"]) == "hi"
    assert choice["finish_reason"] == "length"
    assert body["splitpoint"]["finish_reason"] == "deadline"
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def test_all_objects_of_one_answer_share_their_id() -> None:
    chat = answer(is_chat=True)
    opening = chat.first_chunk()
    assert opening is not None
    ids = {
        body["id"]
        for body in (
            opening,
            chat.chunk(0, ChoiceDelta(text="a")),
            chat.usage_chunk([completion()]),
        )
    }
    assert len(ids) == 1
    assert answer(is_chat=True).id != chat.id
    assert answer(is_chat=False).first_chunk() is None


def test_log_probabilities_have_the_shape_of_their_endpoint() -> None:
    pieces = [
        TextPiece(1, -0.5, "", "", b"\xe2\x82", 10),
        TextPiece(22, -1.0, "€b", "€b", b"\xacb", 10),
        TextPiece(2, -2.0, "", "</s>", b"", 12),
    ]
    delta = ChoiceDelta(text="€b", pieces=tuple(pieces))
    chat = answer(is_chat=True, with_logprobs=True).chunk(0, delta)
    content = chat["choices"][0]["logprobs"]["content"]
    assert [(entry["token"], entry["logprob"]) for entry in content] == [
        ("", -0.5),
        ("€b", -1),
        ("</s>", -2),
    ]
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == "€b"
    plain = answer(is_chat=False, with_logprobs=True).chunk(0, delta)
    assert plain["choices"][0]["logprobs"]["text_offset"] == [10, 10, 12]
    assert plain["choices"][0]["logprobs"]["tokens"] == ["", "€b", "</s>"]
    assert answer(is_chat=False).chunk(0, delta)["choices"][0]["logprobs"] is None
    whole = answer(is_chat=True, with_logprobs=True).whole(
        [Choice(completion=completion(), text="hi", pieces=pieces)]
    )
    assert whole["choices"][0]["logprobs"]["content"] == content
