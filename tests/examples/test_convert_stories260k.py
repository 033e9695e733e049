"""The stories260K example: the converted model and tokenizer do what llama2.c's do."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from tests.local_data import CHECKOUT, shared_data


def load_example() -> ModuleType:
    """The example as a module: it is a script, and lies in no package."""
    path = CHECKOUT / "examples" / "convert_stories260k.py"
    spec = importlib.util.spec_from_file_location("convert_stories260k", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data() -> Path:
    return shared_data("models/stories260k")


@pytest.fixture(scope="module")
def golden(data: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((data / "golden.json").read_text())
    return values


@pytest.fixture(scope="module")
def converted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stories") / "stories260k"
    load_example().convert(data, out)
    return out


def encode_like_llama2c(text: str, tokens: list[tuple[bytes, float]]) -> list[int]:
    """llama2.c's `encode`, written from its description: best-scoring neighbours join first."""
    id_of = {token: index for index, (token, _) in enumerate(tokens) if index >= 3}
    ids: list[int] = [id_of[b" "]] if text else []
    for character in text:
        known = id_of.get(character.encode())
        ids += [known] if known is not None else [byte + 3 for byte in character.encode()]
    while True:
        joined = [
            (tokens[id_of[pair]][1], position, id_of[pair])
            for position in range(len(ids) - 1)
            if (pair := tokens[ids[position]][0] + tokens[ids[position + 1]][0]) in id_of
        ]
        if not joined:
            return ids
        best = max(score for score, _, _ in joined)
        position, merged = next((p, m) for score, p, m in joined if score == best)
        ids[position : position + 2] = [merged]


def read_tokens(path: Path) -> list[tuple[bytes, float]]:
    content, position, tokens = path.read_bytes(), 4, []
    while position < len(content):
        score, length = struct.unpack_from("<fi", content, position)
        tokens.append((content[position + 8 : position + 8 + length], score))
        position += 8 + length
    return tokens


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was a little girl named Lily.",
        "  two  spaces, and one after ",
        'She said, "I don\'t know!" 1234 + 5 = ?\nA new line',
        "caf\u00e9 \u2026 \u4f60\u597d \U0001f600 {unknown} \x7f",
        "Timmyupon theand",
        "",
    ],
)
def test_the_tokenizer_gives_llama2c_tokens(converted: Path, data: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    expected = encode_like_llama2c(text, read_tokens(data / "tok512.bin"))
    assert tokenizer.encode(text).ids == [1, *expected]
    assert tokenizer.decode(expected) == text


def test_the_golden_story_is_reproduced_token_for_token(
    converted: Path, golden: dict[str, Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    expected = golden["greedy_ids_from_bos"]
    ids = model.generate(
        torch.tensor([[golden["bos_id"]]]),
        attention_mask=torch.ones(1, 1, dtype=torch.int64),
        do_sample=False,
        max_new_tokens=len(expected) - 1,
        pad_token_id=0,
    )[0].tolist()
    tokenizer = Tokenizer.from_file(str(converted / "tokenizer.json"))
    assert ids == expected
    assert tokenizer.decode(ids[1:]) == golden["greedy_text"]


def test_the_first_logits_are_the_golden_ones(converted: Path, golden: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([[golden["bos_id"]]])).logits[0, -1]
    ids = [token for token, _ in golden["first_step_top5"]]
    expected = [value for _, value in golden["first_step_top5"]]
    assert logits.topk(5).indices.tolist() == ids
    np.testing.assert_allclose(logits[ids].numpy(), expected, atol=2e-5)
