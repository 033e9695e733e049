"""The client's own checks: what it refuses before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.client import EdgeClient
from edge.errors import InputError
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
