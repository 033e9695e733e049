"""The report is one file that a browser shows without a network, in the light and in the dark."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from optimizer.simulate.budget import BudgetView, Change, CurvePoint, QuantilePoint
from optimizer.simulate.measures import measure
from optimizer.simulate.report.charts import tick_label
from optimizer.simulate.report.draw import DARK, LIGHT
from optimizer.simulate.report.files import Findings, write_files
from optimizer.simulate.scenario import Arrivals, Budget
from optimizer.simulate.sweep import SweepPoint
from tests.optimizer.simulate.scenes import run, scene

VIEW = BudgetView(
    kept=True,
    clients_carried=4,
    at_least=False,
    clients_per_server=4.0,
    curve=tuple(
        CurvePoint(
            num_clients=n,
            within_budget=1 - n / 50,
            ttft_p95_s=0.1,
            tbt_p95_s=0.1,
            server_utilisation=0.5,
        )
        for n in (1, 2, 4)
    ),
    breaks_at=0.9,
    quantiles=(QuantilePoint(quantile=0.9, within_budget=0.5, kept=False),),
    changes=(Change(name="split 5", within_budget=0.97, ttft_p95_s=0.1, tbt_p95_s=0.1, kept=True),),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenario = scene(
        group={"arrivals": Arrivals(kind="closed", think_s=1.0)},
        name="a <b>bold</b> name",
        budget=Budget(ttft_s=0.5, tbt_s=0.1),
    )
    record = run(scenario)
    measures = measure(scenario, [record])
    folder = tmp_path_factory.mktemp("report")
    findings = Findings(
        scenario=scenario,
        records=[record],
        measures=measures,
        budget=VIEW,
        sweep=(SweepPoint(values={"split": 5}, measures=measures),),
    )
    write_files(findings, folder)
    return folder


def test_the_page_names_nothing_outside_itself(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert "http" not in text
    assert "<script" not in text
    assert text.count("<svg") == 5
    assert "prefers-color-scheme: dark" in text
    assert "<b>bold</b>" not in text


def test_every_picture_takes_its_colours_from_the_page(report: Path) -> None:
    text = (report / "report.html").read_text()
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    for picture in pictures:
        used = set(re.findall(r"var\(--([\w-]+)\)", picture))
        assert {"ink", "rule"} < used <= set(LIGHT)
        assert re.findall(r"(?:fill|stroke): #", picture) == []
        assert "font-family" not in picture
    assert set(LIGHT) == set(DARK)
    for colours in (LIGHT, DARK):
        assert all(f"--{name}: {colour};" in text for name, colour in colours.items())


def test_every_id_of_the_page_is_its_own_and_what_is_referred_to_is_there(report: Path) -> None:
    text = (report / "report.html").read_text()
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    referred = re.findall(r'(?:href="#|url\(#|labelledby=")([\w.-]+)', text)
    assert set(referred) <= set(ids)


def test_bars_and_spans_say_their_numbers_under_the_mouse(report: Path) -> None:
    text = (report / "report.html").read_text()
    assert re.search(r"<title>edge: [\d.]+ ms \(\d+%\)</title>", text)
    assert re.search(r"<title>cloud: [\d.]+ ms</title>", text)


def test_figures_and_pictures_are_written(report: Path) -> None:
    found = json.loads((report / "measures.json").read_text())
    assert found["budget"]["clients_carried"] == 4
    assert found["sweep"][0]["values"] == {"split": 5}
    with (report / "requests.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found["requests"]["asked"]
    assert {row["outcome"] for row in rows} == {"done"}
    for name in ("ttft", "tbt", "breakdown", "timeline", "capacity"):
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (report / "capacity.csv").read_text().count("\n") == 4


@pytest.mark.parametrize(("width", "dark"), [(1000, False), (390, True)])
def test_a_browser_shows_it_without_errors(
    report: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    picture = tmp_path / "page.png"
    found = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},3000",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            f"--screenshot={picture}",
            (report / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in found.stderr
    from matplotlib.image import imread

    pixels = imread(picture)[..., :3]
    background = (0x14, 0x14, 0x16) if dark else (0xFB, 0xFB, 0xFA)
    line = (0x6C, 0xB4, 0xEE) if dark else (0x1F, 0x6F, 0xB2)
    assert share_of(pixels, background) > 0.2
    assert share_of(pixels, line) > 1e-4  # the curves are there


def share_of(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((np.abs(pixels * 255 - np.array(colour)).max(axis=-1) < 3).mean())


def test_tick_labels_are_short() -> None:
    assert [tick_label(v) for v in (0.2, 50, 20_000)] == ["0.2", "50", "20k"]
