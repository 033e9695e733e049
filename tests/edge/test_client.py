"""The client's own checks: what it refuses before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
from tokenizers import Tokenizer

from edge.client import EdgeClient
from edge.errors import ContextLengthError, InputError
from edge.generation.completion import CompletionRequest
from tests.conftest import ModelBench


@pytest.fixture(scope="module")
def bench(tiny: Any) -> ModelBench:
    made: ModelBench = tiny("llama")
    return made


@pytest.fixture(scope="module")
def client(bench: ModelBench) -> Iterator[EdgeClient]:
    """A client of a whole model on the edge: no server is needed."""
    with EdgeClient(bench.edge_bundle(bench.num_layers)) as made:
        yield made


def test_a_plan_with_layers_in_the_cloud_needs_a_server(bench: ModelBench) -> None:
    with pytest.raises(InputError, match="needs a server"):
        EdgeClient(bench.edge_bundle(2))


@pytest.mark.parametrize("server", ["gpu", "http://gpu:1", "gpu:0", ["gpu:1", "gpu:99999"]])
def test_an_address_that_cannot_be_dialled_is_refused_before_anything_loads(
    tmp_path: Path, server: str | list[str]
) -> None:
    with pytest.raises(InputError, match=r"^server '"):
        EdgeClient(tmp_path / "no bundle is here", server)


def test_an_empty_prompt_is_refused(client: EdgeClient) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        client.start_ids([])


def test_prompt_and_answer_have_to_fit_the_plan(client: EdgeClient) -> None:
    room = client.plan.max_tokens
    with pytest.raises(InputError, match=f"the plan allows {room}"):
        client.start_ids([1] * room)
    with pytest.raises(InputError, match="ask for at most 5 new ones"):
        client.start_ids([1] * (room - 5), CompletionRequest(max_new_tokens=6))
    client.start_ids([1] * (room - 5), CompletionRequest(max_new_tokens=5))
    client.start_ids([1] * room, CompletionRequest(context="shift"))


@pytest.mark.parametrize("ids", [[320], [1, -1], [1] * 50 + [1 << 40]])
def test_an_unknown_token_id_is_refused_before_a_generation_begins(
    client: EdgeClient, ids: list[int]
) -> None:
    with pytest.raises(InputError, match="must lie between 0 and 319"):
        client.start_ids(ids)


@pytest.mark.parametrize("as_chat", [False, True])
def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(
    client: EdgeClient, as_chat: bool
) -> None:
    def prompt(num_chars: int) -> Any:
        text = "x" * num_chars
        return [{"role": "user", "content": text[1:]}, {"role": "user", "content": "x"}]

    def text(num_chars: int) -> Any:
        return "x" * num_chars

    made = prompt if as_chat else text
    most = client.max_prompt_bytes("refuse")
    shifting = CompletionRequest(context="shift")
    with patch.object(client, "tokenizer", Mock(wraps=client.tokenizer)) as tokenizer:
        with pytest.raises(ContextLengthError, match=f"{most + 1} characters"):
            client.start(made(most + 1))
        with pytest.raises(ContextLengthError, match="characters"):
            client.start(made(client.max_prompt_bytes("shift") + 1), shifting)
        assert not tokenizer.encode.called
        assert not tokenizer.encode_chat.called
        client.start("x" * (most + 1), shifting)
        assert tokenizer.encode.called


def test_a_text_of_many_tokens_is_tokenized_only_until_it_is_certain_that_it_does_not_fit(
    client: EdgeClient,
) -> None:
    room = client.plan.max_tokens
    with (
        patch("edge.prompt_lengths.SLICE_CHARS", 100),
        patch("edge.prompt_lengths.SURE_BYTES_PER_TOKEN", 1),
        patch.object(client, "tokenizer", Mock(wraps=client.tokenizer)) as tokenizer,
    ):
        with pytest.raises(ContextLengthError, match=f"more than {room} tokens"):
            client.start("x" * 1_500)
        assert all(len(call.args[0]) <= 100 for call in tokenizer.encode.call_args_list)
        assert 100 * tokenizer.encode.call_count < 3 * room
        with pytest.raises(ContextLengthError, match=f"the prompt has {room + 1} tokens"):
            client.start("x" * (room + 1))


def test_tokens_are_those_of_the_library_itself(client: EdgeClient, bench: ModelBench) -> None:
    library = Tokenizer.from_file(
        str(bench.edge_bundle(bench.num_layers) / "edge" / "tokenizer.json")
    )
    for text in ("", "once upon", "é🙂\n<s>x</s>"):
        assert client.tokenizer.encode(text) == library.encode(text).ids


def test_every_text_of_the_longest_tokens_is_within_the_limit(client: EdgeClient) -> None:
    vocab_size = client.plan.model.geometry.vocab_size
    longest = max((client.tokenizer.decode([id_]) for id_ in range(vocab_size)), key=len)
    most = client.max_prompt_bytes("refuse")
    assert len(longest.encode()) * client.plan.max_tokens <= most


def test_without_a_number_the_answer_may_fill_the_plan(client: EdgeClient) -> None:
    room = client.plan.max_tokens
    request = CompletionRequest(max_new_tokens=None, ignore_eos=True)
    run = client.start_ids([1] * (room - 3), request)
    assert len(list(run)) == 3
    assert run.completion.finish_reason == "length"


def test_text_and_its_token_ids_give_the_same_answer(client: EdgeClient) -> None:
    request = CompletionRequest(max_new_tokens=5, ignore_eos=True)
    by_text = client.complete("once upon", request)
    run = client.start_ids(client.tokenizer.encode("once upon"), request)
    list(run)
    assert run.completion.token_ids == by_text.token_ids
