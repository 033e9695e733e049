"""Through real sockets, at every split, the tokens are those of the whole model."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from tests.conftest import ModelBench
from tests.end_to_end.greedy import first_difference, generate
from tests.end_to_end.prompts import PROMPTS
from tests.end_to_end.servers import running_server

# `make prove` runs the whole grid (20 prompts, 64 tokens); the tests take a part of it.
WHOLE_GRID = bool(os.environ.get("SPLITPOINT_WHOLE_GRID"))
REAL_SPLITS = (0, 1, 7, 15, 22, 29, 30)
REAL_PROMPTS = PROMPTS if WHOLE_GRID else PROMPTS[:4]
REAL_TOKENS = 64 if WHOLE_GRID else 16
# test_every_model runs all families in one process; these go through sockets.
TINY_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "granite")
TINY_PROMPT = list(np.random.default_rng(3).integers(4, 250, size=37))


def answer(
    client: EdgeClient, prompt: list[int], count: int, *, logprobs: bool = False
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens and log-probabilities, generated past any end-of-text token."""
    client._settings = type(client._settings)(stop_token_ids=())
    request = CompletionRequest(max_new_tokens=count, sampling=SamplingParams(logprobs=logprobs))
    run = client.start_ids(prompt, request)
    for _ in run:
        pass
    return run.completion.token_ids, run.completion.logprobs


@pytest.mark.parametrize("architecture", TINY_FAMILIES)
def test_every_tiny_architecture_gives_the_same_tokens_at_every_split(
    tiny: Any, architecture: str
) -> None:
    bench: ModelBench = tiny(architecture)
    prompt = [int(token) for token in TINY_PROMPT]
    whole = generate(bench.whole, prompt, 24)
    with running_server(bench.cloud_bundle()) as server:
        for split in range(bench.num_layers + 1):
            with EdgeClient(bench.edge_bundle(split), server.address) as client:
                tokens, logprobs = answer(client, prompt, 24, logprobs=True)
            assert first_difference(bench.whole, prompt, tokens, whole) is None, f"split {split}"
            with torch.inference_mode():
                logits = bench.whole(torch.tensor([[*prompt, *tokens]])).logits[0]
            expected = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1]
            np.testing.assert_allclose(
                logprobs, expected[torch.arange(24), list(tokens)], rtol=1e-4, atol=1e-4
            )
        assert server.server.pool.used_bytes == 0


@pytest.mark.real_model
@pytest.mark.timeout(3600 if WHOLE_GRID else 600)
def test_smollm2_gives_the_same_tokens_at_every_split(real: ModelBench) -> None:
    """All prompts at once: the sessions share the server's batches, and change no token."""
    tokenizer = real.source.load_tokenizer()
    prompts = [tokenizer(text).input_ids for text in REAL_PROMPTS]
    answers: dict[int, list[tuple[int, ...]]] = {}
    with running_server(real.cloud_bundle()) as server:
        for split in REAL_SPLITS:
            bundle = real.edge_bundle(split)
            with (
                EdgeClient(bundle, server.address, concurrency=len(prompts)) as client,
                ThreadPoolExecutor(len(prompts)) as pool,
            ):
                runs = pool.map(lambda prompt: answer(client, prompt, REAL_TOKENS)[0], prompts)
                answers[split] = list(runs)
    whole = [generate(real.whole, prompt, REAL_TOKENS) for prompt in prompts]
    wrong = [
        f"split {split}, prompt {index}: {difference}"
        for split, of_split in answers.items()
        for index, tokens in enumerate(of_split)
        if (difference := first_difference(real.whole, prompts[index], tokens, whole[index]))
    ]
    assert not wrong
