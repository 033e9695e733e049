"""Text reaches a command as it was written, whatever the locale, and leaves it whole."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from edge.errors import InputError
from hwprofiles.links.schedule import read_trace
from splitpoint.cli import main
from splitpoint.commands.run import QuestionOptions
from splitpoint.text_input import accept_any_text, read_text, read_token, text_argument
from tests.conftest import ModelBench

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PROMPT = "né 🙂"


@pytest.fixture(scope="module")
def bundle(bench: ModelBench) -> Path:
    return bench.chat_bundle(bench.num_layers)


def splitpoint(
    *arguments: object, variables: dict[str, str], typed: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    return subprocess.run(
        [sys.executable, "-m", "splitpoint", *(os.fsencode(str(a)) for a in arguments)],
        env={**clean, **variables},
        input=typed,
        capture_output=True,
        check=False,
        timeout=60,
    )


def tokens_of(finished: subprocess.CompletedProcess[bytes]) -> list[int]:
    assert finished.returncode == 0, finished.stderr
    tokens: list[int] = json.loads(finished.stdout)["tokens"]
    return tokens


def test_under_an_ascii_locale_arguments_files_paths_and_templates_are_still_utf8(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--max-new-tokens", 6, "--json", "--ignore-eos")
    place = tmp_path / "né"
    place.mkdir()
    (place / "bundle").symlink_to(bundle)
    file = place / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8")
    assert main(["run", str(bundle), "--prompt", PROMPT, *map(str, options)]) == 0
    expected = json.loads(capsys.readouterr().out)["tokens"]
    there = place / "bundle"
    for question in (("--prompt", PROMPT), ("--prompt-file", file)):
        finished = splitpoint("run", there, *question, *options, variables=ASCII)
        assert tokens_of(finished) == expected
    talk = splitpoint("chat", there, "--max-new-tokens", 3, variables=ASCII, typed="é\n".encode())
    assert talk.returncode == 0, talk.stderr
    assert b"tokens" in talk.stderr


def test_a_terminal_that_cannot_show_a_character_shows_the_rest(bundle: Path) -> None:
    answer = splitpoint(
        *("run", bundle, "--prompt", "hello", "--max-new-tokens", 40, "--ignore-eos"),
        variables={"PYTHONIOENCODING": "latin-1"},
    )
    assert answer.returncode == 0, answer.stderr
    assert b"[length] 40 tokens" in answer.stderr
    assert answer.stdout.count(b"?") > 1
    assert len(answer.stdout) > 10


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "BUNDLE", "--prompt", "a\udcff"], "--prompt: not UTF-8 (byte 0xff at offset 1)"),
        (["run", "BUNDLE", "--chat", "\udce9"], "--chat: not UTF-8 (byte 0xe9 at offset 0)"),
        (["run", "BUNDLE", "--prompt", "a", "--stop", "\udcff"], "--stop: not UTF-8"),
        (["chat", "BUNDLE", "--system", "\udcff"], "--system: not UTF-8"),
        (["run", "BUNDLE", "--prompt", "\ud83d"], "--prompt: not UTF-8 (half of"),
        (["run", "BUNDLE", "--prompt", "a", "--level", "\udcff"], "level: character 0"),
        (["run", "BUNDLE", "--prompt", "a", "--threads", "99999999"], "threads"),
    ],
)
def test_arguments_that_are_not_utf8_are_bad_usage(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main([str(bundle) if word == "BUNDLE" else word for word in arguments]) == 2
    said = capsys.readouterr().err
    assert reason in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xc3\xa9", "aé"),
        (b"\xef\xbb\xbfa", "a"),
        (b"a\r\nb\rc\n", "a\nb\nc\n"),
        (b"", ""),
    ],
)
def test_a_text_file_is_utf8_without_its_mark(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "t").write_bytes(data)
    assert read_text(tmp_path / "t") == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9", r"t: not UTF-8 \(byte 0xe9 at offset 3\): save the file as UTF-8"),
        (b"\xef\xbb\xbfab\xff", "byte 0xff at offset 5"),
        ("a".encode("utf-16"), "this looks like UTF-16"),
    ],
)
def test_a_text_file_that_is_not_utf8_is_named_with_the_place_and_the_cure(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(InputError, match=reason):
        read_text(tmp_path / "t")


def test_arguments_are_read_anew_where_the_locale_had_no_letters_for_them() -> None:
    assert text_argument("é", "--prompt") == "é"
    assert text_argument("\udcc3\udca9", "--prompt") == "é"
    with pytest.raises(typer.BadParameter, match="--prompt: not UTF-8"):
        text_argument("\udcc3", "--prompt")


def test_a_token_file_may_begin_with_a_mark_and_holds_one_visible_word(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xef\xbb\xbfsecret~1\r\n")
    assert read_token(path) == "secret~1"
    for data in (b"", b"a b", b"a\x01b", "schlüssel".encode(), b"\xff"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=str(path)):
            read_token(path)


def test_key_and_tenant_files_may_begin_with_a_mark(tmp_path: Path) -> None:
    from cloud.sessions.tenants import Tenants
    from edge.api.access import ApiAccess

    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbfsecret\n")
    assert ApiAccess(key_file=path).keys() == (b"secret",)
    assert Tenants.parse(path.read_bytes(), "keys").of("Bearer secret") is not None


def test_a_trace_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes("\ufefft_s,down_mbps\n0,5\n1,6\n".encode())
    assert read_trace(path).rtt_s is None


def test_standard_streams_take_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stdin", None)
    accept_any_text()
    print("é!", file=out, flush=True)
    assert out.buffer.getvalue() == b"?!\n"


class StandardInput:
    """Bytes in place of standard input."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(
    "given", [{"text": "-"}, {"prompt": "-"}, {"prompt_file": Path("-")}, {"chat": "-"}]
)
def test_run_reads_its_question_from_standard_input(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", StandardInput("\ufeffzwölf\r\nzeilen".encode()))
    asked = QuestionOptions(**given).question()
    text = "zwölf\nzeilen"
    assert asked == ([{"role": "user", "content": text}] if "chat" in given else text)


def test_run_takes_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    assert QuestionOptions(text="plain").question() == "plain"
    cases: list[dict[str, Any]] = [{}, {"text": "-", "prompt": "x"}, {"chat": "", "prompt": ""}]
    for given in cases:
        with pytest.raises(typer.BadParameter, match="exactly one of"):
            QuestionOptions(**given).question()
    monkeypatch.setattr(sys, "stdin", StandardInput(b"caf\xe9"))
    with pytest.raises(InputError, match="standard input: "):
        QuestionOptions(text="-").question()
