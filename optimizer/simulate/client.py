"""One simulated client: its requests one after another, each a generation."""

from __future__ import annotations

import math

from optimizer.simulate.connector import SimulatedConnector
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.generation import Generation
from optimizer.simulate.local_answer import answer_locally
from optimizer.simulate.record import Outcome, RequestRow
from optimizer.simulate.workload import ClientSpec, Request


class SimulatedClient:
    """Asks what its spec says. A question that comes while the device is busy waits.

    recorded: whether its first answer becomes the record's timeline.
    """

    __slots__ = ("_connector", "_context", "_current", "_device", "_next", "_recorded", "_spec")

    def __init__(
        self,
        context: SimulationContext,
        spec: ClientSpec,
        device: Device,
        *,
        recorded: bool = False,
    ) -> None:
        self._context = context
        self._spec = spec
        self._device = device
        self._connector = SimulatedConnector(
            context, device, spec.number % max(len(context.addresses), 1)
        )
        self._recorded = recorded
        self._next = 0
        self._current: Generation | None = None
        self._plan_next(0.0)

    @property
    def spec(self) -> ClientSpec:
        """Who it is, and what it drew."""
        return self._spec

    def abandon(self) -> None:
        """The simulation ends here, and an answer in progress counts as unfinished."""
        if self._current is not None:
            self._current.abandon()

    def ended(self, generation: Generation, at_s: float, outcome: Outcome) -> None:
        """The answer in progress is over at `at_s`, now or a little later."""
        record, request = self._context.record, generation.request
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
                prompt_ids=generation.parts.prompt_ids,
                moves=generation.parts.moves,
                move_bytes=generation.parts.move_bytes,
            )
        )
        if generation.num_tokens:
            self._recorded = False
        self._current = None

    def _plan_next(self, free_s: float) -> None:
        """Ask the next question when it is due and the device is free."""
        spec = self._spec
        if self._next >= len(spec.requests):
            return
        request = spec.requests[self._next]
        asked_s = free_s + request.at_s if spec.closed else request.at_s
        if asked_s >= self._context.scenario.duration_s:
            return
        self._next += 1
        self._context.at(max(asked_s, free_s), lambda _: self._ask(request, asked_s))

    def _ask(self, request: Request, asked_s: float) -> None:
        context = self._context
        if context.plan.edge_is_whole:
            self._answer_locally(request, asked_s)
            return
        self._connector.begin_answer()
        self._current = Generation(
            context,
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
        """Without servers the whole answer is known at once."""
        context, record = self._context, self._context.record
        first_s, last_s = answer_locally(
            record,
            self._device.front,
            request,
            asked_s=asked_s,
            begun_s=context.env.now,
            chunk=context.plan.prefill_chunk,
            sample_s=self._device.front.sample_s,
            horizon_s=context.scenario.duration_s,
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
