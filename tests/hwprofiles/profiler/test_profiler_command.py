"""`splitpoint profile`: one JSON object on stdout where asked, tables otherwise, clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwprofiles.errors import ProfileError
from hwprofiles.links.catalog import link_names
from hwprofiles.profiles.catalog import DEVICES_DIR, load_device, shipped_devices
from hwprofiles.profiles.compare import compare_devices, key_figures
from splitpoint.commands.profile import profile_app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(profile_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_list_names_every_shipped_profile() -> None:
    text = run("list")
    for name in (*shipped_devices(), *link_names()):
        assert name in text


@pytest.mark.parametrize("name", ["raspberry-pi-5-8gb", "l4-24gb"])
def test_show_prints_the_profile_as_json_or_with_its_sources(name: str) -> None:
    assert json.loads(run("show", name, "--json"))["name"] == name
    text = run("show", name)
    assert "data_sheet: http" in text
    assert "memory bandwidth" in text


def test_show_knows_a_link_from_a_device(tmp_path: Path) -> None:
    name = link_names()[0]
    assert "round trip" in run("show", name)
    assert "up_bytes_per_s" in json.loads(run("show", name, "--json"))
    path = tmp_path / "mine.yaml"
    path.write_text((DEVICES_DIR / "raspberry-pi-4-4gb.yaml").read_text())
    assert json.loads(run("show", str(path), "--json"))["name"] == "raspberry-pi-4-4gb"


def test_compare_gives_the_ratio_of_every_common_figure() -> None:
    rows = json.loads(run("compare", "raspberry-pi-5-8gb", "raspberry-pi-4-4gb", "--json"))
    bandwidth = next(row for row in rows if row["figure"] == "memory bandwidth")
    assert bandwidth["ratio"] == pytest.approx((17.07 * 0.66) / (12.8 * 0.43), rel=1e-6)
    same = load_device("l4-24gb")
    assert {row.ratio for row in compare_devices(same, same)} == {1.0}
    assert len(compare_devices(same, same)) == len(key_figures(same))


def test_schema_prints_json_schema() -> None:
    assert json.loads(run("schema", "device"))["title"] == "DeviceProfile"
    assert json.loads(run("schema", "link"))["title"] == "LinkProfile"


def test_an_unknown_profile_is_one_clear_error() -> None:
    with pytest.raises(ProfileError, match="shipped are"):
        CliRunner().invoke(profile_app, ["show", "nothing"], catch_exceptions=False)


def test_device_writes_a_profile_that_loads_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        "hwprofiles.profiler.front_profiler.profile_device",
        lambda **_given: load_device("local-epyc-2core"),
    )
    out = tmp_path / "deep" / "mine.yaml"
    assert json.loads(run("device", "--role", "edge", "--quick", "--out", str(out), "--json"))[
        "measured"
    ]
    assert load_device(out) == load_device("local-epyc-2core")


def test_the_role_follows_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch"}
    monkeypatch.setattr(
        "splitpoint.commands.profile.find_spec", lambda name: name in installed or None
    )
    monkeypatch.setattr(
        "hwprofiles.profiler.back_profiler.profile_server",
        lambda _kernels, **_given: load_device("a100-80gb"),
    )
    assert json.loads(run("device", "--json"))["name"] == "a100-80gb"
    with pytest.raises(ProfileError, match="pip install"):
        run("device", "--role", "edge")
