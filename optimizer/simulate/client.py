"""One client: its requests one after another, each a generation."""

from __future__ import annotations

import math

from optimizer.simulate.connector import Connector
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.generation import Generation
from optimizer.simulate.local_answer import answer_locally
from optimizer.simulate.record import Outcome, RequestRow
from optimizer.simulate.workload import ClientSpec, Request


class Client:
    """Asks what it drew; a question that comes while the device is busy waits for it."""

    __slots__ = ("_connector", "_current", "_device", "_next", "_recorded", "_spec", "_world")

    def __init__(
        self, world: SimulationContext, spec: ClientSpec, device: Device, *, recorded: bool = False
    ) -> None:
        self._world = world
        self._spec = spec
        self._device = device
        self._connector = Connector(world, device, spec.number % max(len(world.servers), 1))
        self._recorded = recorded  # whether its first answer becomes the timeline
        self._next = 0
        self._current: Generation | None = None
        self._plan_next(0.0)

    def abandon(self) -> None:
        """The simulation ends here; what is under way counts as unfinished."""
        if self._current is not None:
            self._current.abandon()

    def ended(self, generation: Generation, at_s: float, outcome: Outcome) -> None:
        """The answer under way is over at `at_s`, now or a little later."""
        record, request = self._world.record, generation.request
        complete = outcome in ("done", "stopped")
        record.requests.append(
            RequestRow(
                client=self._spec.number,
                group=self._spec.group,
                server=self._connector.server_number,
                asked_s=generation.asked_s,
                ttft_s=generation.first_s - generation.asked_s,
                e2e_s=at_s - generation.asked_s if complete else math.nan,
                prompt_tokens=request.prompt_tokens,
                tokens=generation.num_tokens,
                round_trips=generation.round_trips,
                outcome=outcome,
            )
        )
        if generation.num_tokens:
            self._recorded = False
        self._current = None

    def _plan_next(self, free_s: float) -> None:
        """The next question, when it is asked and the device is free."""
        spec = self._spec
        if self._next >= len(spec.requests):
            return
        request = spec.requests[self._next]
        asked_s = free_s + request.at_s if spec.closed else request.at_s
        if asked_s >= self._world.scenario.duration_s:
            return
        self._next += 1
        self._world.at(max(asked_s, free_s), lambda _: self._ask(request, asked_s))

    def _ask(self, request: Request, asked_s: float) -> None:
        world = self._world
        if world.plan.edge_is_whole:
            self._answer_locally(request, asked_s)
            return
        self._current = Generation(
            world,
            self._device,
            self._connector,
            request,
            asked_s=asked_s,
            ended=self.ended,
            freed=self._plan_next,
            recorded=self._recorded,
        )
        self._current.start()

    def _answer_locally(self, request: Request, asked_s: float) -> None:
        """Without servers all is known at once."""
        world, record = self._world, self._world.record
        first_s, last_s = answer_locally(
            record,
            self._device.front,
            request,
            asked_s=asked_s,
            begun_s=world.env.now,
            chunk=world.plan.prefill_chunk,
            sample_s=self._device.front.sample_s,
            horizon_s=world.scenario.duration_s,
            drawn=self._recorded,
        )
        record.requests.append(
            RequestRow(
                client=self._spec.number,
                group=self._spec.group,
                server=-1,
                asked_s=asked_s,
                ttft_s=first_s - asked_s,
                e2e_s=last_s - asked_s,
                prompt_tokens=request.prompt_tokens,
                tokens=request.output_tokens,
                round_trips=0,
                outcome="done",
            )
        )
        self._recorded = False
        self._plan_next(last_s)
