"""Text and tokens from a caller: what UTF-8 and HTTP cannot carry is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edge.client import EdgeClient
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.net.credentials import Credentials
from edge.text_input import check_text, utf8_path
from tests.conftest import ModelBench

HALF = "a\ud83d"


@pytest.mark.parametrize("text", ["", "plain", "é\u0000🙂", "\ufeff"])
def test_text_is_text(text: str) -> None:
    assert check_text(text, "it") == text


def test_half_of_a_surrogate_pair_is_named_with_its_place() -> None:
    with pytest.raises(InputError, match=r"the prompt: character 1 .*U\+D83D"):
        check_text(HALF, "the prompt")
    with pytest.raises(InputError, match="the prompt must be text, not int"):
        check_text(7, "the prompt")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (HALF, "the prompt: character 1"),
        ([{"role": "user", "content": HALF}], "message 0: character 1"),
        ([{"role": HALF, "content": "x"}], "the role of message 0: character 1"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(bench: ModelBench, prompt: Any, reason: str) -> None:
    with (
        EdgeClient(bench.chat_bundle(bench.num_layers)) as client,
        pytest.raises(InputError, match=reason),
    ):
        client.start(prompt)


@pytest.mark.parametrize("token_id", [-1, 320, 10**20, 10**400, 1.5, "7"])
def test_a_token_id_that_the_model_does_not_have_is_refused_before_anything_is_sent(
    bench: ModelBench, token_id: Any
) -> None:
    with (
        EdgeClient(bench.edge_bundle(2), "127.0.0.1:1") as client,
        pytest.raises(InputError, match=r"the prompt: a token id is .*must"),
    ):
        client.start_ids([5, token_id])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"stop": ("a",) * 1000}, "1000 stop strings: at most 64"),
        ({"stop": ("a" * 2000,)}, "2000 characters: at most 1000"),
        ({"stop": (HALF,)}, "a stop string: character 1"),
        ({"stop": "END"}, "several strings"),
        ({"stop": (7,)}, "a stop string must be text"),
        ({"level": HALF}, "level: character 1"),
        ({"draft": HALF}, "draft: character 1"),
        ({"deadline_tbt_s": -1.0}, "must be above 0"),
        ({"deadline_tbt_s": float("inf")}, "at most 86400"),
        ({"deadline_tbt_s": 10**400}, "a number of 1329 bits s: at most"),
        ({"deadline_tbt_s": "1"}, "must be above 0"),
        ({"max_new_tokens": 1 << 31}, "lie between 1 and 2147483647"),
        ({"max_new_tokens": 10**400}, "a number of 1329 bits"),
        ({"max_new_tokens": 1.5}, "must be a whole number"),
    ],
)
def test_requests_that_would_break_later_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        CompletionRequest(**fields)


@pytest.mark.parametrize("token", ["", "a b", "a\x00", "schlüssel", "\ufeffabc", "a\n", HALF])
def test_a_token_that_no_header_carries_is_refused(token: str) -> None:
    with pytest.raises(InputError, match=r"credentials: .*token"):
        Credentials(token=token)


def test_a_template_may_begin_with_a_byte_order_mark_and_is_utf8(
    bench: ModelBench, tmp_path: Path
) -> None:
    from edge.device.bundle_parts import tokenizer_of
    from optimizer.artifacts.bundle import (
        EDGE_SETTINGS_NAME,
        TEMPLATE_NAME,
        EdgeSettings,
        open_bundle,
    )

    opened = open_bundle(bench.chat_bundle(bench.num_layers), role="edge")
    settings = EdgeSettings.load(opened.root / "edge")
    assert opened.has(f"edge/{EDGE_SETTINGS_NAME}")

    def encoded() -> list[int]:
        tokenizer = tokenizer_of(opened, settings, allow_control_tokens=False)
        return tokenizer.encode_chat([{"role": "user", "content": "é"}])

    plain = encoded()
    template = opened.path(TEMPLATE_NAME)
    data = template.read_bytes()
    try:
        template.write_bytes(b"\xef\xbb\xbf" + data)
        assert encoded() == plain
        template.write_bytes(data + b"\xff")
        with pytest.raises(Exception, match=r"chat_template\.jinja.*UTF-8"):
            encoded()
    finally:
        template.write_bytes(data)


def test_a_path_is_handed_on_in_utf8_and_refused_when_it_is_not() -> None:
    assert utf8_path(Path("a/é")) == "a/é"
    with pytest.raises(InputError, match="rename it"):
        utf8_path(Path(os.fsdecode(b"a/\xff")))
