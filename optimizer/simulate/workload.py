"""Which requests come when: drawn by client from the scenario's seed, or read from a load trace.

Every client has a Philox stream of its own (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"), keyed by seed and client number. So a client's requests depend neither on the
number of clients nor on the order of events. Two scenarios that differ elsewhere get equal load.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from hwprofiles.schema.utf8 import NotUtf8Error, utf8_text
from optimizer.errors import ScenarioError
from optimizer.simulate.scenario import Arrivals, Clients, Lengths, Scenario

# The shortest turn of a closed loop for which times are drawn.
MIN_TURN_S: Final = 0.25


class Request(NamedTuple):
    """One question. `at_s`: when it is asked; in a closed loop, how long after the last answer."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """One client and what it drew. `start_s`: where its link's schedule starts, in [0, 1) of the
    schedule's period."""

    number: int
    group: int
    device: str
    link: str
    start_s: float
    requests: tuple[Request, ...]
    closed: bool


def client_specs(scenario: Scenario, *, longest: int | Mapping[str, int]) -> Iterator[ClientSpec]:
    """Every client with its draws. Prompt and answer together are cut to `longest` tokens (the
    plan's max_tokens, or by the group's name), the answer first."""
    number = 0
    for group_index, group in enumerate(scenario.clients):
        most = longest if isinstance(longest, int) else longest[group.name]
        devices, links = _choice(group.devices), _choice(group.link.mix)
        rows = _dealt(group) if group.arrivals.kind == "trace" else None
        for member in range(group.count):
            stream = np.random.Generator(np.random.Philox(key=[scenario.seed, number]))
            u = stream.random(3)
            requests = (
                _drawn(group, stream, scenario.duration_s)
                if rows is None
                else [row for row in rows[member] if row.at_s < scenario.duration_s]
            )
            yield ClientSpec(
                number=number,
                group=group_index,
                device=_pick(devices, u[0]),
                link=_pick(links, u[1]),
                start_s=float(u[2]) if group.link.random_start else 0.0,
                requests=tuple(_fitting(request, most) for request in requests),
                closed=group.arrivals.kind == "closed",
            )
            number += 1


def _drawn(group: Clients, stream: np.random.Generator, duration_s: float) -> list[Request]:
    arrivals = group.arrivals
    times = _gaps(arrivals, stream, duration_s)
    prompts = _lengths(group.prompt_tokens, stream, len(times))
    outputs = _lengths(group.output_tokens, stream, len(times))
    return [Request(*row) for row in zip(times, prompts, outputs, strict=True)]


def _gaps(arrivals: Arrivals, stream: np.random.Generator, duration_s: float) -> list[float]:
    """Poisson: arrival times in the duration. Closed loop: thinking times, more than are used."""
    if arrivals.kind == "poisson":
        count = stream.poisson(arrivals.rate_per_s * duration_s)
        # Given their number, Poisson arrivals are independent and uniform.
        times: list[float] = np.sort(stream.random(count) * duration_s).tolist()
        return times
    mean = arrivals.think_s
    most = math.ceil(duration_s / max(mean, MIN_TURN_S)) + 8
    if arrivals.fixed_think or mean == 0:
        return [mean] * most
    gaps: list[float] = stream.exponential(mean, 2 * most).tolist()
    return gaps


def _lengths(lengths: Lengths, stream: np.random.Generator, count: int) -> list[int]:
    values = lengths.median * np.exp(lengths.sigma * stream.standard_normal(count))
    most = lengths.most if lengths.most is not None else np.iinfo(np.int64).max // 2
    rounded: list[int] = np.clip(np.rint(values), lengths.least, most).astype(np.int64).tolist()
    return rounded


def _fitting(request: Request, longest: int) -> Request:
    prompt = min(request.prompt_tokens, longest - 1)
    return Request(request.at_s, prompt, max(1, min(request.output_tokens, longest - prompt)))


def _dealt(group: Clients) -> list[list[Request]]:
    """The trace's rows, dealt round robin to the group's clients."""
    rows = read_workload(group.arrivals.trace or "")
    return [
        [
            Request(row.at_s / group.arrivals.speed, row.prompt_tokens, row.output_tokens)
            for row in rows[member :: group.count]
        ]
        for member in range(group.count)
    ]


def read_workload(path: str) -> tuple[Request, ...]:
    """Read `t_s,prompt_tokens,output_tokens`; times count from the first row.

    Raises ScenarioError naming file, line and column.
    """
    try:
        text = utf8_text(Path(path).read_bytes())
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows, columns = list(reader), reader.fieldnames or []
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except (NotUtf8Error, csv.Error) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from error
    missing = [name for name in ("t_s", "prompt_tokens", "output_tokens") if name not in columns]
    if missing or not rows:
        raise ScenarioError(
            f"{path}: a load trace needs the columns t_s, prompt_tokens, output_tokens and a row; "
            f"found {', '.join(columns) or 'nothing'}"
        )

    def number(line: int, name: str, least: float) -> float:
        try:
            value = float(rows[line][name])
        except (TypeError, ValueError):
            value = math.nan
        if not least <= value < math.inf:
            raise ScenarioError(
                f"{path}, line {line + 2}: '{name}' must be a number, at least {least:g}, "
                f"not {rows[line][name]!r}"
            )
        return value

    first_s = number(0, "t_s", 0)
    requests = [
        Request(
            number(i, "t_s", first_s) - first_s,
            int(number(i, "prompt_tokens", 1)),
            int(number(i, "output_tokens", 1)),
        )
        for i in range(len(rows))
    ]
    return tuple(sorted(requests))


def _choice(mix: dict[str, float]) -> tuple[tuple[float, str], ...]:
    """Cumulative shares of a mix by weight."""
    total, reached, ladder = sum(mix.values()), 0.0, []
    for name, weight in mix.items():
        reached += weight / total
        ladder.append((reached, name))
    return tuple(ladder)


def _pick(ladder: tuple[tuple[float, str], ...], level: float) -> str:
    return next((name for reached, name in ladder if level < reached), ladder[-1][1])
