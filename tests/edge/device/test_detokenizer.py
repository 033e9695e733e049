"""Any sequence of ids streams, and what its tokens say joins to the text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from edge.device.detokenizer import Detokenizer
from edge.device.token_bytes import byte_rules
from edge.device.tokenizer import ChatTokenizer
from edge.generation.stopping import StopRule
from tests.conftest import ModelBench

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁", "a", "▁Hello", "▁▁", "lo", "é", "日", "##b", ".", "c</w>"]
LLAMA: list[Any] = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
]
DECODERS: dict[str, Any] = {
    "byte-level": decoders.ByteLevel(),
    "llama": decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)]),
    "gemma": decoders.Sequence(LLAMA),
    "metaspace": decoders.Metaspace(),
    "metaspace-never": decoders.Metaspace(prepend_scheme="never"),
    "word-piece": decoders.WordPiece(),
    "end-of-word": decoders.BPEDecoder("</w>"),
    "ctc": decoders.CTC(),
    "none": None,
}
BYTE_KINDS = ["byte-level", "llama", "gemma", "metaspace", "metaspace-never"]


def tokenizer_of(kind: str) -> Tokenizer:
    names = ["<s>", "</s>", *WORDS, *BYTES]
    if kind == "byte-level":
        names += sorted(set(ByteLevel.alphabet()) - set(names))
    tokenizer = Tokenizer(BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool> x", normalized=False)])
    tokenizer.decoder = DECODERS[kind]
    return tokenizer


TOKENIZERS = {kind: tokenizer_of(kind) for kind in DECODERS}
UNKNOWN = [len(WORDS) + 900, 1 << 33, -1]


def ids_of(kind: str, *names: str) -> list[int]:
    vocabulary: dict[str, int] = TOKENIZERS[kind].get_vocab()
    return [vocabulary[name] for name in names]


def streamed(kind: str, prompt: list[int], ids: list[int]) -> str:
    stream = Detokenizer(TOKENIZERS[kind]).stream(prompt)
    return "".join([stream.push(token_id).text for token_id in ids]) + stream.flush()


def random_ids(kind: str) -> st.SearchStrategy[list[int]]:
    known = st.integers(0, TOKENIZERS[kind].get_vocab_size() - 1)
    words = st.integers(0, len(WORDS) + 1)  # more often than chance would have it
    return st.lists(st.one_of(known, words, st.sampled_from(UNKNOWN)), max_size=12)


def reference(kind: str, ids: list[int]) -> str | None:
    """What `tokenizers` decodes; None where a run of byte tokens is no UTF-8 (see the module)."""
    tokenizer = TOKENIZERS[kind]
    known = [at for at in ids if 0 <= at < 1 << 32]
    names = [tokenizer.id_to_token(at) or "<s>" for at in known]
    if kind in ("llama", "gemma"):
        text = "".join(name for name in names if name not in ("<s>", "</s>"))
        for run in re.findall(r"(?:<0x[0-9A-F]{2}>)+", text):
            try:
                bytes.fromhex(run.replace("<0x", "").replace(">", "")).decode()
            except UnicodeDecodeError:
                return None
    decoded: str = tokenizer.decode(known)
    return decoded


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
def test_prompt_and_streamed_text_are_what_decoding_all_ids_gives(
    kind: str, data: st.DataObject
) -> None:
    prompt, ids = data.draw(random_ids(kind)), data.draw(random_ids(kind))
    before, joint = reference(kind, prompt), reference(kind, [*prompt, *ids])
    text = streamed(kind, prompt, ids)
    if before is not None and joint is not None and not before.endswith("\ufffd"):
        assert before + text == joint


@pytest.mark.parametrize("kind", DECODERS)
@given(data=st.data())
def test_token_bytes_and_token_texts_join_to_the_text(kind: str, data: st.DataObject) -> None:
    prompt, ids = data.draw(random_ids(kind)), data.draw(random_ids(kind))
    stream = Detokenizer(TOKENIZERS[kind]).stream(prompt)
    tokens = [stream.push(token_id) for token_id in ids]
    rest = stream.flush()
    text = "".join(token.text for token in tokens) + rest
    if kind in BYTE_KINDS:
        assert b"".join(token.data for token in tokens).decode("utf-8", "replace") == text
    else:
        assert b"".join(token.data for token in tokens).decode() + rest == text
    assert all(token.token == token.text or token.token in ("<s>", "</s>") for token in tokens)


@pytest.fixture(scope="module")
def real_tokenizer(real: ModelBench) -> Tokenizer:
    return Tokenizer.from_str(real.source.tokenizer_files().tokenizer_json)


@given(st.lists(st.integers(0, 49151), max_size=20), st.lists(st.integers(0, 49151), max_size=20))
def test_the_real_tokenizer_streams_what_it_decodes(
    real_tokenizer: Tokenizer, prompt: list[int], ids: list[int]
) -> None:
    before: str = real_tokenizer.decode(prompt)
    stream = Detokenizer(real_tokenizer).stream(prompt)
    text = "".join([stream.push(token_id).text for token_id in ids]) + stream.flush()
    assert Detokenizer(real_tokenizer).decode(ids) == real_tokenizer.decode(ids)
    if not before.endswith("\ufffd"):
        assert before + text == real_tokenizer.decode([*prompt, *ids])


def test_an_answer_keeps_its_first_space_and_a_whole_text_does_not() -> None:
    for kind in ("llama", "metaspace"):
        hello = ids_of(kind, "▁Hello", "▁Hello")
        assert streamed(kind, ids_of(kind, "<s>", "a"), hello) == " Hello Hello"
        assert streamed(kind, ids_of(kind, "<s>"), hello) == "Hello Hello"


def test_the_sequence_that_tokenizers_refuses_to_stream_has_a_text() -> None:
    ids = ids_of("llama", "▁", "▁", "<0x41>", "<0xE2>", "a")
    assert streamed("llama", ids_of("llama", "a"), ids) == "  A\ufffda"


def test_text_waits_for_the_last_byte_of_its_character() -> None:
    stream = Detokenizer(TOKENIZERS["gemma"]).stream()
    euro = ids_of("gemma", "<0xE2>", "<0x82>", "<0xAC>")
    assert [stream.push(token_id).text for token_id in euro] == ["", "", "€"]
    assert [stream.push(token_id).data for token_id in euro] == [b"\xe2", b"\x82", b"\xac"]
    assert stream.push(euro[0]).text == ""
    assert [stream.flush(), stream.flush()] == ["\ufffd", ""]


def test_special_tokens_have_a_name_and_no_text() -> None:
    stream = Detokenizer(TOKENIZERS["llama"]).stream()
    assert stream.push(ids_of("llama", "</s>")[0]) == ("", "</s>", b"")


@pytest.mark.parametrize(
    "config",
    [
        None,
        7,
        {"type": "Sequence", "decoders": []},
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"Regex": "▁+"}, "content": " "},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Replace"}]},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 0, "stop": 1},
            ],
        },
    ],
)
def test_a_decoder_that_is_not_known_is_left_to_tokenizers(config: Any) -> None:
    assert byte_rules(config) is None


def test_a_stop_string_is_found_across_pieces_and_cuts_whole_characters() -> None:
    kind = "gemma"
    ids = ids_of(kind, "a", "<0xE2>", "<0x82>", "<0xAC>", "lo", "<0xE2>", "<0x82>", "<0xAC>", "lo")
    stream = Detokenizer(TOKENIZERS[kind]).stream()
    rule = StopRule(stop_token_ids=(), stop_strings=("o€l",), max_new_tokens=100)
    shown = ""
    for token_id in ids:
        shown += rule.push(token_id, stream.push(token_id).text)
        shown.encode()
        if rule.reason:
            break
    assert (shown, rule.reason) == ("a€l", "stop")


def test_a_bundle_tokenizer_streams_after_its_prompt(tmp_path: Path) -> None:
    from optimizer.artifacts.bundle import EdgeSettings

    TOKENIZERS["llama"].save(str(tmp_path / "tokenizer.json"))
    tokenizer = ChatTokenizer(tmp_path / "tokenizer.json", None, EdgeSettings(stop_token_ids=()))
    (hello,) = ids_of("llama", "▁Hello")
    assert tokenizer.stream([hello]).push(hello).text == " Hello"
    assert tokenizer.stream().push(hello).text == "Hello"
    assert tokenizer.decode([hello, hello]) == "Hello Hello"
