"""Options from variables and splitpoint.toml: who comes first, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from splitpoint.cli import COMMANDS, main, make_app
from splitpoint.settings import leaves, options_of, variables_of

Shown = Callable[..., dict[str, Any]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run commands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPLITPOINT_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """What `config show` says of an option, by its command and name."""

    def show(*before: str) -> dict[str, Any]:
        assert main([*before, "config", "show", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        found["options"] = {f"{one['command']} {one['option']}": one for one in found["options"]}
        return found

    return show


def run(*arguments: str) -> int:
    """A command that ends at once with bad usage, after its options were read."""
    return main(["run", "none", "--prompt", "hi", *arguments])


def test_the_command_line_comes_before_a_variable_before_the_file_before_the_default(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def server() -> str:
        words = capsys.readouterr().err.split()
        return next(word.strip("',:;\"") for word in words if "from-" in word)

    (place / "splitpoint.toml").write_text('[run]\nserver = "from-file"\n')
    assert run() != 0
    assert server() == "from-file"
    monkeypatch.setenv("SPLITPOINT_SERVER", "from-any")
    assert run() != 0
    assert server() == "from-any"
    monkeypatch.setenv("SPLITPOINT_RUN_SERVER", "from-own")
    assert run() != 0
    assert server() == "from-own"
    assert run("--server", "from-line") != 0
    assert server() == "from-line"


def test_config_show_names_the_source_of_each_option(
    place: Path, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    assert shown()["file"] is None
    (place / "mine.toml").write_text(
        '[serve]\nkv-memory = "2GiB"\n[profile.device]\nquick = true\n', encoding="utf-8"
    )
    monkeypatch.setenv("SPLITPOINT_SERVE_LISTEN", "127.0.0.1:7")
    monkeypatch.setenv("SPLITPOINT_NOTHING", "1")
    monkeypatch.setenv("SPLITPOINT_KV_MEMORY", "1GiB")  # of serve, which has its own
    monkeypatch.setenv("SPLITPOINT_SERVE_KV_MEMORY", "3GiB")
    found = shown("--config", "mine.toml")
    assert found["file"] == "mine.toml"
    options = found["options"]
    assert options["serve kv-memory"]["value"] == "3GiB"
    assert options["serve kv-memory"]["source"] == "SPLITPOINT_SERVE_KV_MEMORY"
    assert options["profile device quick"]["value"] is True
    assert options["profile device quick"]["source"] == "mine.toml"
    assert options["serve listen"]["source"] == "SPLITPOINT_SERVE_LISTEN"
    assert found["unknown"] == ["SPLITPOINT_NOTHING"]
    monkeypatch.setenv("SPLITPOINT_CONFIG", "mine.toml")
    assert shown()["options"].keys() == options.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[serve]\nkv-memori = "1GiB"\n',
            r"[serve] has no option kv-memori; did you mean kv-memory",
        ),
        ("[serv]\na = 1\n", "[serv] is no command; did you mean serve?"),
        ("[model.fetsh]\na = 1\n", "[model.fetsh] is no command; did you mean fetch?"),
        ("serve = 3\n", "serve is a table: [serve]"),
        ("[serve]\nlisten = { a = 1 }\n", "[serve] listen: not a value of an option"),
        ("[serve]\nlisten = [1]\n", "[serve] listen: not a value of an option"),
        ("[serve\n", "splitpoint.toml:"),
        ("a = " + 100_000 * "[", "splitpoint.toml: nested too deeply"),
        ("[serve]\nhelp = true\n", "[serve] has no option help"),
        ("[serve]\nfolder = 'x'\n", "[serve] has no option folder"),
    ],
)
def test_a_file_with_a_mistake_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (place / "splitpoint.toml").write_text(text, encoding="utf-8")
    found = []
    for arguments in (["serve", "bundle"], ["model", "inspect", "x"]):
        status = main(arguments)
        error = capsys.readouterr().err
        if status == 2:
            found.append(error)
            assert message in error
            assert len(error.strip().splitlines()) == 1
    assert found  # by the command that the table is for, at least


def test_a_wrong_value_is_said_with_where_it_came_from(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "splitpoint.toml").write_text('[run]\nseed = "x"\n', encoding="utf-8")
    assert main(["run", "bundle", "--chat", "hi"]) == 2
    assert "splitpoint.toml [run]: Invalid value for '--seed'" in capsys.readouterr().err
    monkeypatch.setenv("SPLITPOINT_RUN_SEED", "y")
    assert main(["run", "bundle", "--chat", "hi"]) == 2
    assert "splitpoint: SPLITPOINT_RUN_SEED: Invalid value for" in capsys.readouterr().err
    assert main(["run", "bundle", "--chat", "hi", "--seed", "z"]) == 2
    assert "splitpoint: Invalid value for '--seed'" in capsys.readouterr().err


def test_a_file_that_was_named_has_to_be_there(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", "none.toml", "doctor"]) == 2
    assert "none.toml: there is no such file" in capsys.readouterr().err
    (place / "bytes.toml").write_bytes(b"\xff\xfe")
    assert main(["--config=bytes.toml", "doctor"]) == 2
    assert "bytes.toml: " in capsys.readouterr().err


# What `--model` names there is a bundle of a server, elsewhere a folder.
OTHER_MEANING = {
    ("serve", "bundle"),
    *((place, "model") for place in ("run", "chat", "api", "pull")),
}


def test_every_option_has_its_variables_and_no_two_commands_share_the_own_one() -> None:
    names: set[str] = set()
    for where, command in leaves(typer.main.get_command(make_app(COMMANDS))):
        for key in options_of(command):
            own, *general = variables_of(where, key)
            assert own.startswith("SPLITPOINT_")
            assert own not in names
            shared = [f"SPLITPOINT_{key.upper().replace('-', '_')}"]
            assert general == ([] if (where, key) in OTHER_MEANING else shared)
            names.add(own)
    assert len(names) > 200
