"""The report is one file that a browser shows without a network, in the light and in the dark."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.simulate.budget import BudgetView, Change, CurvePoint, QuantilePoint
from optimizer.simulate.measures import measure
from optimizer.simulate.report.charts import ChartLine, LineChart, tick_label
from optimizer.simulate.report.draw import DARK, LIGHT, draw_figure
from optimizer.simulate.report.files import Findings, write_files
from optimizer.simulate.report.subject import subject_of
from optimizer.simulate.report.tables import share_of_wanted
from optimizer.simulate.scenario import Arrivals, Budget, Link
from optimizer.simulate.sweep import SweepPoint
from tests.optimizer.simulate.scenes import GROUP, PLAN, SCENE, run, scene

VIEW = BudgetView(
    kept=True,
    clients_carried=4,
    at_least=False,
    clients_per_server=4.0,
    curve=tuple(
        CurvePoint(
            num_clients=n,
            first_in_time=1.0,
            further_in_time=1 - n / 50,
            within_budget=1 - n / 50,
            kept=True,
            ttft_p95_s=0.1,
            tbt_p95_s=0.1,
            server_utilisation=0.5,
        )
        for n in (1, 2, 4)
    ),
    breaks_at=0.9,
    quantiles=(
        QuantilePoint(
            quantile=0.9, first_in_time=0.5, further_in_time=1.0, within_budget=0.5, kept=False
        ),
    ),
    changes=(
        Change(
            name="split 5",
            first_in_time=0.97,
            further_in_time=1.0,
            within_budget=0.97,
            ttft_p95_s=0.1,
            tbt_p95_s=0.1,
            kept=True,
        ),
    ),
)


TWO_CURVES = LineChart(
    name="two",
    title="Two",
    x_label="clients",
    y_label="share",
    lines=tuple(
        ChartLine(name=name, xs=(1.0, 200.0), ys=(1.0, end)) for name, end in (("a", 0.0), ("b", 1))
    ),
    limit=(190.0, "190 clients"),
    unit_interval=True,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scenario = scene(
        group={"arrivals": Arrivals(kind="closed", think_s=1.0)},
        name="a <b>bold</b> name",
        budget=Budget(ttft_s=0.001, tbt_s=0.1, tbt_share=0.5),
    )
    record = run(scenario)
    measures = measure(scenario, [record])
    folder = tmp_path_factory.mktemp("report")
    findings = Findings(
        scenario=scenario,
        plan=PLAN,
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


def test_the_head_names_model_split_devices_link_and_load(report: Path) -> None:
    text = (report / "report.html").read_text()
    head = text[text.index("<h1>") : text.index("<h2>")]
    named = dict(re.findall(r"<dt>(\w+)</dt><dd>([^<]*)</dd>", head))
    assert named["model"] == "m"
    assert named["split"].startswith("after layer 10 of 30: 10 on the device at 4 bits, 20 on the")
    assert named["devices"] == "1 x raspberry-pi-5-8gb"
    assert named["servers"] == "1 x local-epyc-2core"
    assert named["link"] == "4g, held at its 50% quantile"
    assert named["load"] == "each asks again after 1 s; prompts 150, answers 20 tokens"
    assert json.loads((report / "measures.json").read_text())["subject"] == named


def test_every_group_of_clients_is_named_with_its_own_and_no_folder() -> None:
    phone = replace(GROUP, name="phones", devices={"a": 1, "b": 3, "c": 0}, count=40)
    other = replace(phone, name="cars", link=Link(mix={"/home/me/drive.csv": 1.0}))
    found = subject_of(replace(SCENE, clients=(phone, other)), PLAN)
    assert found["devices"] == "40: 25% a, 75% b"
    assert found["link"] == "phones: 4g, held at its 50% quantile; cars: drive.csv"
    whole = replace(PLAN, partition=replace(PLAN.partition, split=30))
    assert "servers" not in subject_of(SCENE, whole)


def test_the_verdict_is_by_limit_each_against_its_own_share(report: Path) -> None:
    text = (report / "report.html").read_text()
    table = text[text.index("<h2>Verdict</h2>") : text.index("<h2>What would keep")]
    cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", table)]
    assert cells == [
        *("first token 1 ms", "0.0%", "95%", "broken"),
        *("between tokens 100 ms", cells[5], "50%", "kept"),
    ]


def test_a_share_that_falls_short_never_reads_as_reached() -> None:
    assert share_of_wanted(0.94996, 0.95) == "94.996%"
    assert share_of_wanted(0.95, 0.95) == "95.0%"
    assert share_of_wanted(0.5, 0.95) == "50.0%"


def test_no_label_and_no_legend_lies_over_a_curve(report: Path) -> None:
    """A limit's label is above the axes, and a legend below them."""
    for chart in (TWO_CURVES, replace(TWO_CURVES, lines=TWO_CURVES.lines[:1])):
        figure = draw_figure(chart, LIGHT, lambda artist, label: None)
        figure.canvas.draw()
        inside = figure.axes[0].get_window_extent()
        texts = [*figure.axes[0].texts, *(legend for legend in figure.legends)]
        assert len(texts) == len(chart.lines)
        for text in texts:
            box = text.get_window_extent()
            assert box.y0 >= inside.y1 or box.y1 <= inside.y0
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


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
