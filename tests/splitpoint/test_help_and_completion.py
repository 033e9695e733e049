"""The help cuts no option's name at 80 columns; shells complete options and their values."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer.main
from typer.testing import CliRunner

from splitpoint.cli import COMMANDS, main, make_app, shorten_types
from splitpoint.commands import choices
from splitpoint.settings import leaves

PLACES = [place for place, _ in leaves(typer.main.get_command(make_app(COMMANDS)))]


@pytest.mark.parametrize("place", PLACES)
def test_the_help_cuts_no_name_at_80_columns(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*place.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    command = dict(leaves(typer.main.get_command(make_app(COMMANDS))))[place]
    names = [
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    ]
    assert [name for name in names if name not in shown] == []
    assert "…" not in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_only_numbers_with_bounds_get_a_short_type() -> None:
    command = typer.main.get_command(make_app(["build"]))
    shorten_types(command)
    types = {option.name: option.metavar for _, one in leaves(command) for option in one.params}
    assert types["calibration_tokens"] == "N"
    assert types["front_bits"] is None


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_gets_a_script(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell is found among the parents of the process, where there is one."""
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    app = make_app(["plan"])
    shown = CliRunner().invoke(app, ["--show-completion"], prog_name="splitpoint")
    script = shown.output
    assert "_SPLITPOINT_COMPLETE=complete_" in script
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("splitpoint pl", ["plan"]),
        ("splitpoint plan --link w", ["wifi"]),
        ("splitpoint plan --edge raspberry-pi-5", ["raspberry-pi-5-8gb"]),
        ("splitpoint plan --model smollm2-135", ["smollm2-135m"]),
        ("splitpoint run bundle --draft n", ["ngram"]),
        ("splitpoint run bundle --context sh", ["shift"]),
        ("splitpoint serve bundle --device c", ["cpu", "cuda"]),
    ],
)
def test_bash_completes_commands_and_values(line: str, expected: list[str]) -> None:
    words = line.split()
    variables = {
        "_SPLITPOINT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "SPLITPOINT_CONFIG": "/no/such/file",  # a broken setting does not break the Tab key
    }
    done = subprocess.run(
        [sys.executable, "-m", "splitpoint"],
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.split() == expected


def test_zsh_completes_values() -> None:
    variables = {
        "_SPLITPOINT_COMPLETE": "complete_zsh",
        "_TYPER_COMPLETE_ARGS": "splitpoint simulate p --link sat",
    }
    done = subprocess.run(
        [sys.executable, "-m", "splitpoint"],
        env=os.environ | variables,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert "satellite" in done.stdout
    assert "wifi" not in done.stdout


def test_the_lists_that_are_written_twice_agree() -> None:
    from edge.draft.registry import NAMES
    from edge.generation.completion import PREFERRED

    assert choices.DRAFTS == NAMES
    assert choices.PREFERRED == PREFERRED
