"""The device's tokenizer agrees with transformers', chat template and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge.device.tokenizer import ChatMessage, ChatTokenizer
from edge.errors import EdgeError, InputError
from optimizer.artifacts.bundle import EdgeSettings
from tests.conftest import ModelBench

TEXTS = ["Hello, world", "  two  spaces\n\nand lines", "naïve café 🙂 Ж 日本語", "", "<|im_end|>"]
CHAT: list[ChatMessage] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Où est la gare ?"},
    {"role": "assistant", "content": "Là-bas."},
    {"role": "user", "content": "Merci 🙂"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `pair` puts its tokenizer.json."""
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(params=["tiny", "real"], scope="module")
def pair(request: pytest.FixtureRequest, folder: Path) -> tuple[ChatTokenizer, Any]:
    """Ours, made of the files a bundle holds, and transformers'."""
    fixture = request.getfixturevalue(request.param)
    bench: ModelBench = fixture("llama") if request.param == "tiny" else fixture
    files = bench.source.tokenizer_files()
    (folder / "tokenizer.json").write_text(files.tokenizer_json, encoding="utf-8")
    ours = ChatTokenizer(folder / "tokenizer.json", files.chat_template, files.settings)
    return ours, bench.source.load_tokenizer()


def test_text_gives_the_same_ids(pair: tuple[ChatTokenizer, Any]) -> None:
    ours, theirs = pair
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids


def test_a_conversation_gives_the_same_ids(pair: tuple[ChatTokenizer, Any]) -> None:
    ours, theirs = pair
    expected = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
    assert ours.encode_chat(CHAT) == expected["input_ids"]


def test_streamed_text_is_the_whole_text_and_never_a_broken_character(
    pair: tuple[ChatTokenizer, Any],
) -> None:
    ours, theirs = pair
    ids = theirs("naïve 🙂 日本語, said the café").input_ids
    stream = ours.stream()
    pieces = [stream.push(token).text for token in ids]
    assert "".join(pieces) == theirs.decode(ids, skip_special_tokens=True)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_template_can_refuse_and_cannot_reach_out(
    pair: tuple[ChatTokenizer, Any], folder: Path
) -> None:
    settings = EdgeSettings(stop_token_ids=())
    for template in ("{{ raise_exception('no system here') }}", "{{ ''.__class__.__mro__ }}"):
        tokenizer = ChatTokenizer(folder / "tokenizer.json", template, settings)
        with pytest.raises(InputError, match="refuses this conversation"):
            tokenizer.encode_chat(CHAT)


def test_without_a_template_a_chat_is_refused_and_a_bad_file_named(
    pair: tuple[ChatTokenizer, Any], folder: Path
) -> None:
    settings = EdgeSettings(stop_token_ids=())
    with pytest.raises(InputError, match="no chat template"):
        ChatTokenizer(folder / "tokenizer.json", None, settings).encode_chat(CHAT)
    (folder / "broken.json").write_text("{}")
    with pytest.raises(EdgeError, match=r"broken\.json"):
        ChatTokenizer(folder / "broken.json", None, settings)
