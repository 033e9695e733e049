"""What commands print is what there is: brackets stay, and near names are offered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.table import Table

from hwprofiles.errors import ProfileError
from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from splitpoint.cli import main
from splitpoint.views.screen import open_console

ROOT = Path(__file__).parents[2]


def test_brackets_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("fix")
    table.add_row("pip install 'splitpoint[edge]' :smile:")
    console = open_console(width=80)
    console.print(table)
    console.print("[bold]what the user wrote[/bold]")
    shown = capsys.readouterr().out
    assert "pip install 'splitpoint[edge]' :smile:" in shown
    assert "[bold]what the user wrote[/bold]" in shown


def test_no_command_opens_a_console_that_reads_markup() -> None:
    allowed = {"screen.py", "long_work.py"}  # whose console reads no markup
    for path in (ROOT / "splitpoint").rglob("*.py"):
        calls = re.findall(r"(?<!open_)\bConsole\(", path.read_text(encoding="utf-8"))
        assert not calls or path.name in allowed, path


def test_a_name_that_is_nearly_right_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProfileError, match=r"did you mean raspberry-pi-5-8gb\?"):
        load_device("raspberry-pi5")
    with pytest.raises(ProfileError, match=r"did you mean wifi\?"):
        load_link("wi-fi")
    with pytest.raises(ProfileError) as caught:
        load_link("carrier-pigeon")
    assert "did you mean" not in str(caught.value)
    assert main(["plan", "--model", "smolm2-135m"]) != 0
    assert main(["plan", "--model", "smolm2-135m", "--edge", "raspberry-pi-5-8gb",
                 "--cloud", "a100-80gb", "--link", "4g"]) == 1  # fmt: skip
    assert "did you mean smollm2-135m?" in capsys.readouterr().err
