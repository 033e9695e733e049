"""Real edge processes with a recorded front before a real server: what
`simulated_against_measured.py` measures with.

Clients and server would compete for this machine's two cores, so the server has the first to
itself and the edges, with the link emulator, share the second. An edge is
`replayed_edge.py`: the real edge code whose front sleeps for a device's time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codec.ladder import Ladder
from edge.client import EdgeClient
from edge.generation.completion import CompletionRequest
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.simulate.scenario import Fault

HERE = Path(__file__).parent
DEVICE = "raspberry-pi-5-8gb"
SPARE_TOKENS = 40  # rows that drafts may ask for beyond the answer


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the edges reach the server at `target`."""

    address: str
    target: str
    link: EmulatedLink | None = None

    def age_s(self) -> float:
        """How long the link's schedule has run."""
        return 0.0 if self.link is None else self.link.counters().running_s


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run of the edges left: each one's `asked` and `steps`, and the link's age when they
    began."""

    edges: list[dict[str, Any]]
    link_age_s: float

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Every frame's trace."""
        return [step for edge in self.edges for step in edge["steps"]]

    @property
    def asked(self) -> list[dict[str, Any]]:
        """Every question."""
        return [question for edge in self.edges for question in edge["asked"]]


@dataclass(frozen=True, kw_only=True)
class EdgeGroup:
    """Edges of one kind behind one link. output_tokens 0: as many as the fleet's."""

    thoughts: Sequence[Sequence[float]]
    way: Way
    device: str | None = DEVICE
    drafting: bool = False
    in_flight: bool = False
    deadline_s: float | None = None
    output_tokens: int = 0


class Fleet:
    """One server at `address`, one recorded answer, and edges that replay it."""

    def __init__(self, *, bundle: Path, address: str, folder: Path, output_tokens: int) -> None:
        self.address = address
        self._bundle = bundle
        self._folder = folder
        self._output_tokens = output_tokens
        self._recording = folder / "recording.npz"
        self.prompt_tokens = 0
        # Of the plan's level and the coarser ones, on the recorded rows: the prompt's, and the
        # answer's one by one.
        self.bits_per_element: dict[str, tuple[float, float]] = {}

    def record(self, question: str) -> None:
        """One real answer to `question`, and the front's rows for its tokens."""
        rows: list[np.ndarray] = []
        with EdgeClient(self._bundle, self.address) as client:
            front = client._fronts.get()
            forward = front.forward

            class Recording:
                """The front, with a copy of all that it computes."""

                def forward(self, token_ids: np.ndarray) -> np.ndarray:
                    rows.append(forward(token_ids).copy())
                    return rows[-1]

                def __getattr__(self, name: str) -> Any:
                    return getattr(front, name)

            client._fronts.put(Recording())  # type: ignore[arg-type]
            prompt = client.tokenizer.encode_chat([{"role": "user", "content": question}])
            wanted = self._output_tokens + SPARE_TOKENS
            run = client.start_ids(
                prompt, CompletionRequest(max_new_tokens=wanted, draft="off", ignore_eos=True)
            )
            for _ in run:
                pass
            ids = np.array([*prompt, *run.completion.token_ids], dtype=np.int64)
            self._weigh(client.ladder, client.plan.level, ids, np.concatenate(rows), len(prompt))
        found = np.concatenate(rows)
        # The last token's rows are never computed; whoever drafts beyond it gets its neighbour's.
        missing = max(len(prompt) + wanted - len(found), 0)
        found = np.concatenate([found, np.repeat(found[-1:], missing, axis=0)])
        self.prompt_tokens = len(prompt)
        np.savez(self._recording, prompt=np.array(prompt), rows=found)

    def _weigh(
        self, ladder: Ladder, level: str, ids: np.ndarray, rows: np.ndarray, num_prompt: int
    ) -> None:
        last = min(len(rows), num_prompt + self._output_tokens)
        for name in ladder.names[ladder.names.index(level) :]:
            prompt = len(ladder.encode(name, rows[:num_prompt], ids[:num_prompt]))
            answer = [
                len(ladder.encode(name, rows[i : i + 1], ids[i : i + 1]))
                for i in range(num_prompt, last)
            ]
            width = rows.shape[1]
            mean = float(np.mean(answer))
            self.bits_per_element[name] = (8 * prompt / num_prompt / width, 8 * mean / width)

    def run(
        self,
        thoughts: Sequence[Sequence[float]],
        seconds: float,
        *,
        way: Way | None = None,
        device: str | None = DEVICE,
        drafting: bool = False,
        in_flight: bool = False,
        deadline_s: float | None = None,
        faults: Sequence[Fault] = (),
    ) -> Run:
        """An edge for each list of thinking times, for `seconds`.

        device None: a front that takes no time. in_flight: drafts leave ahead of answers. The edges
        start together, once all of them have answered a question of their own without the link:
        their code is warm then, and their connection through the link still to be made.
        """
        way = way or Way(address=self.address, target=self.address)
        group = EdgeGroup(
            thoughts=thoughts,
            way=way,
            device=device,
            drafting=drafting,
            in_flight=in_flight,
            deadline_s=deadline_s,
        )
        return self.run_together([group], seconds, faults=faults)[0]

    def run_together(
        self, groups: Sequence[EdgeGroup], seconds: float, *, faults: Sequence[Fault] = ()
    ) -> list[Run]:
        """Groups of edges, each with a link of its own, at the same server and time. faults: of the
        first group's link."""
        processes = [
            self._edge(group, thought, seconds, name=f"{index}-{number}")
            for index, group in enumerate(groups)
            for number, thought in enumerate(group.thoughts)
        ]
        for process in processes:
            if process.stdout is None or process.stdout.readline().strip() != "ready":
                raise RuntimeError("an edge process failed")
        start_s = time.monotonic() + 0.2
        ages_s = [group.way.age_s() + start_s - time.monotonic() for group in groups]
        breaking = threading.Thread(target=act_out, args=(faults, groups[0].way, start_s))
        breaking.start()
        for process in processes:
            if process.stdin is not None:
                process.stdin.write(f"{start_s}\n")
                process.stdin.flush()
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        breaking.join()
        if any(process.returncode for process in processes):
            raise RuntimeError("an edge process failed")
        left = iter(outputs)
        return [
            Run(edges=[json.loads(next(left)) for _ in group.thoughts], link_age_s=age_s)
            for group, age_s in zip(groups, ages_s, strict=True)
        ]

    def _edge(
        self, group: EdgeGroup, thought: Sequence[float], seconds: float, *, name: str
    ) -> subprocess.Popen[str]:
        """One edge's process, which says when it is ready."""
        job = self._folder / f"job-{name}.json"
        job.write_text(
            json.dumps(
                {
                    "bundle": str(self._bundle),
                    "recording": str(self._recording),
                    "address": group.way.address,
                    "warm_address": self.address,
                    "device": group.device,
                    "think_s": list(thought),
                    "seconds": seconds,
                    "output_tokens": group.output_tokens or self._output_tokens,
                    "deadline_s": group.deadline_s,
                    "drafting": group.drafting,
                    "in_flight": group.in_flight,
                }
            )
        )
        command = [sys.executable, str(HERE / "replayed_edge.py"), str(job)]
        return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def act_out(faults: Sequence[Fault], way: Way, start_s: float) -> None:
    """Break the link at the faults' moments, counted from `start_s`.

    A lost server is what the edges see of one: every connection is reset, and nobody listens
    until its time is over. The sessions it had are gone, since these edges ask it to keep none.
    """
    if way.link is None:
        return
    host, port = way.target.rsplit(":", 1)
    target, nobody = (host, int(port)), (host, 1)
    link = way.link
    changes: list[tuple[float, Callable[[], object]]] = []
    for fault in faults:
        end_s = fault.end_s
        if fault.kind == "link_outage":
            changes += [(fault.at_s, link.pause), (end_s, link.resume)]
        else:
            changes += [
                (fault.at_s, lambda: link.retarget(nobody)),
                (fault.at_s, link.drop_connections),
                (end_s, lambda: link.retarget(target)),
            ]
    for at_s, change in sorted(changes, key=lambda item: item[0]):
        time.sleep(max(start_s + at_s - time.monotonic(), 0.0))
        change()


@contextmanager
def emulated(shape: LinkShape, target: str) -> Iterator[Way]:
    """A link of this shape before the server."""
    host, port = target.rsplit(":", 1)
    with EmulatedLink(target=(host, int(port)), shape=shape) as link:
        here, at = link.address
        yield Way(address=f"{here}:{at}", target=target, link=link)


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """This process and its children on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
