"""What `splitpoint plan` answers, with its default limits, for 40 deployments of 1 B to 70 B.

    python benchmarks/planning/forty_plans.py [--write docs/results/planning-and-predictions.md]

Planned from shipped data-sheet profiles: predictions, nothing is measured. Each answer is checked:
every split of the model is solved by itself, with the same limits, and none may be better. With
`--write` the table replaces what stands between the markers of that page. Prints JSON last.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.prediction import Limits
from optimizer.artifacts.specs import load_spec
from optimizer.cost.link import link_at
from optimizer.search.planner import Planner
from optimizer.search.problem import Objective
from optimizer.search.request import make_problem
from optimizer.search.solve import least
from splitpoint.cli import main as splitpoint
from splitpoint.views.sizes import size_text, time_text

MODELS = (
    ("llama-3.2-1b", "l4-24gb"),
    ("llama-3.1-8b", "l4-24gb"),
    ("llama-3.1-8b", "h100-80gb"),
    ("llama-3.1-70b", "h200-141gb"),
    ("gpt-oss-20b", "a100-80gb"),
)
EDGES = (
    "raspberry-pi-5-8gb",
    "jetson-orin-nano-8gb",
    "phone-snapdragon-8-gen-3",
    "laptop-apple-m2-16gb",
)
LINKS = ("wifi", "4g")
BEGIN, END = "<!-- forty: begin -->", "<!-- forty: end -->"
SAME = 1e-9  # by how much a split by itself may seem better: rounding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="page with the markers")
    arguments = parser.parse_args()
    rows = [
        planned(model, edge, cloud, link)
        for model, cloud in MODELS
        for edge in EDGES
        for link in LINKS
    ]
    text = "\n".join(lines_of(rows))
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        arguments.write.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)
    print(json.dumps({"benchmark": "forty_plans", "plans": rows}))


def planned(model: str, edge: str, cloud: str, link: str) -> dict[str, Any]:
    """The command's answer as a row, checked against every split by itself."""
    told, said = io.StringIO(), io.StringIO()
    options = ("--model", model, "--edge", edge, "--cloud", cloud, "--link", link, "--json")
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(said):
        status = splitpoint(["plan", *options])
    row: dict[str, Any] = {"model": model, "edge": edge, "cloud": cloud, "link": link}
    if status:
        return row | {"split": None, "why": said.getvalue().strip().splitlines()[-1]}
    answer = json.loads(told.getvalue())
    row |= {"lifted": "were lifted" in said.getvalue(), "why": answer["why"]}
    row |= {"split": answer["split"], "layers": answer["layers"], "rows": answer["alternatives"]}
    check(row, answer["limits"])
    return row


def check(row: dict[str, Any], limits: dict[str, Any]) -> None:
    """AssertionError where a split by itself, within the same limits, is better than the answer."""
    objective: Objective = "tbt" if row["lifted"] else "cloud-cost"
    column = "tbt_s" if row["lifted"] else "cloud_s_per_token"
    point = link_at(load_link(row["link"]), epsilon=0.5)
    own = row["rows"][0][column]
    for split in range(row["layers"] + 1):
        problem = make_problem(
            load_spec(row["model"]).geometry,
            load_device(row["edge"]),
            load_device(row["cloud"]),
            limits=Limits(**limits),
            objective=objective,
            max_tokens=2048,
            answer_tokens=128,
            splits=(split,),
        )
        grid = Planner(problem).grid(point)
        mask = grid.feasible()
        # The planner gives up a share of the objective, `slack`, for what users notice.
        if mask.any() and least(grid, mask) * (1 + problem.slack) + SAME < own:
            raise AssertionError(f"split {split} is better than {row}")


def lines_of(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown: the plan, and all layers in the cloud or on the device beside it."""
    lines = [
        "| model | edge | cloud | link | split | TTFT | TBT | cloud a token | up a token | "
        "edge memory | quality lost | in the cloud: TBT, cloud a token | on the device: TBT |",
        "| --- | --- | --- | --- " + "| ---: " * 9 + "|",
    ]
    for row in rows:
        start = (
            f"| {row['model']} | {_short(row['edge'])} | {_short(row['cloud'])} | {row['link']} "
        )
        if row["split"] is None:
            lines.append(f"{start}| no plan | | | | | | | | |")
            continue
        by_name = {one["what"]: one for one in row["rows"]}
        plan = by_name["this plan"]
        cloud = by_name.get("all in the cloud")
        device = by_name.get("all on the device")
        star = "*" if row["lifted"] else ""
        beside_cloud = (
            ""
            if cloud is None
            else f"{time_text(cloud['tbt_s'])}, {time_text(cloud['cloud_s_per_token'])}"
            + _marked(cloud)
        )
        beside_device = "" if device is None else time_text(device["tbt_s"]) + _marked(device)
        lines.append(
            f"{start}| {row['split']} of {row['layers']}{star} | {time_text(plan['ttft_s'])} | "
            f"{time_text(plan['tbt_s'])} | {time_text(plan['cloud_s_per_token'])} | "
            f"{plan['uplink_bytes_per_token']:.0f} B | {size_text(plan['edge_memory_bytes'])} | "
            f"{plan['quality_drop_pct']:.2f} % | {beside_cloud} | {beside_device} |"
        )
    return lines


def _marked(row: dict[str, Any]) -> str:
    return " (breaks a limit)" if row["broken"] else ""


def _short(device: str) -> str:
    return device.replace("raspberry-", "").replace("-snapdragon-8-gen-3", "").replace("-apple", "")


if __name__ == "__main__":
    main()
