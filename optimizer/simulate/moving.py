"""A split that moves during a simulated answer; `edge.generation.moving` in simulated time.

Where a client hands over (`context: handover`), an answer that fills the device's cache ends its
session and goes on in one at the next lower split that holds a token more. The server gets all
tokens so far as ids and computes all its layers for them, or it takes over the older session and
gets the keys and values of the moved layers (`optimizer.simulate.move_ways`). The device keeps its
cache for the layers that stay, and computes the newest token alone. At split 0 every later token
goes as an id. Only a full cache moves a simulated split: memory, battery and cooling do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optimizer.artifacts.plan import Plan
from optimizer.simulate.context import Device, SimulationContext
from optimizer.simulate.frames import SimulatedFrameSender
from optimizer.simulate.move_ways import KvFrameCost
from optimizer.simulate.prefill import PrefillProgress
from optimizer.simulate.sessions import SimulatedSession
from optimizer.simulate.workload import Request


def split_capacities(plan: Plan, *, hands_over: bool) -> dict[int, int]:
    """Most tokens of a sequence at every split that an answer may run at."""
    splits = {0, *plan.splits} if hands_over else {plan.partition.split}
    return {split: plan.capacity(split) for split in splits}


def split_holding(capacities: Mapping[int, int], num_tokens: int) -> int:
    """The highest split at which a sequence of `num_tokens` has room for one more."""
    return max(split for split, most in capacities.items() if most > num_tokens)


class SplitParts:
    """The parts of one answer: a session at one split each, until its cache is full.

    `split`: of the part that runs now, and `end`: tokens, prompt and output together, at which it
    is over. `blocks`: KV blocks that it reserves. `sender`, `prefill`: its frames, and how far the
    tokens before it have been sent. `is_fresh`: no token of it has come. `moves`: how often the
    split was another than before, at first the plan's.
    """

    __slots__ = (
        "_capacities",
        "_context",
        "_device",
        "_is_moved",
        "_past_bytes",
        "_prompt_ids",
        "_prompt_tokens",
        "_total",
        "blocks",
        "end",
        "is_fresh",
        "moves",
        "prefill",
        "sender",
        "split",
    )

    def __init__(
        self, context: SimulationContext, device: Device, request: Request, *, at_s: float
    ) -> None:
        self._context = context
        self._device = device
        self._prompt_tokens = request.prompt_tokens
        self._total = request.prompt_tokens + request.output_tokens
        self._capacities = device.capacities
        self._prompt_ids: int | None = None  # None: the first part's prefill counts them
        self._past_bytes = 0
        self.moves = 0
        self.split = context.plan.partition.split
        self._begin(request.prompt_tokens, at_s, is_moved=False)

    @property
    def by_ids(self) -> bool:
        """Whether every token goes as an id, because the split has moved to 0."""
        return self.split == 0 != self._context.plan.partition.split

    @property
    def drafts(self) -> bool:
        """Whether steps carry drafts: a draft head reads the rows of the plan's split alone."""
        plan = self._context.plan
        is_planned = self.split == plan.partition.split
        return is_planned or (self.split > 0 and plan.drafting != "head")

    @property
    def prompt_ids(self) -> int:
        """Tokens of the prompt that have gone as ids: at split 0 all of them."""
        if self._prompt_ids is not None:
            return self._prompt_ids
        most = self._prompt_tokens if self.split == 0 else self.prefill.num_ids
        return min(self.prefill.position, most)

    @property
    def move_bytes(self) -> int:
        """Bytes of the tokens that the server got anew because the split had moved."""
        return self._past_bytes + (self.prefill.id_bytes if self._is_moved else 0)

    def is_over(self, num_tokens: int) -> bool:
        """Whether a sequence of `num_tokens` fills this part, and not the answer."""
        return self.end <= num_tokens < self._total

    def move(self, num_tokens: int, at_s: float) -> None:
        """The next part begins at `at_s`, behind `num_tokens` tokens."""
        self._prompt_ids, self._past_bytes = self.prompt_ids, self.move_bytes
        self._begin(num_tokens, at_s, is_moved=True)

    def _begin(self, num_tokens: int, at_s: float, *, is_moved: bool) -> None:
        context, device, before = self._context, self._device, self.split
        self.split = split = split_holding(self._capacities, num_tokens)
        self.moves += split != before
        self.end = min(self._capacities[split], self._total)
        self.blocks = context.kv_blocks(self.end, split)
        self.is_fresh, self._is_moved = True, is_moved
        self.sender = SimulatedFrameSender(context, device, split)
        all_ids = is_moved or self.by_ids
        num_cached = 0
        if all_ids:  # at split 0 nothing is computed; else the newest token, which no step brought
            num_cached = num_tokens if self.by_ids else num_tokens - 1
        num_ids = num_tokens if all_ids else device.num_ids(num_tokens, split)
        kv_frames: tuple[KvFrameCost, ...] = ()
        if is_moved and split < before:  # the newest token has no keys and values yet
            kv_frames = device.kv_frames(num_tokens - 1, before, split)
        if kv_frames and split > 0:  # its row follows: the server has no others of lower layers
            num_ids = num_tokens - 1
        self.prefill = PrefillProgress(
            context,
            device,
            device.front.at(split),
            num_tokens=num_tokens,
            num_ids=num_ids,
            num_cached=num_cached,
            is_move=is_moved,
            at_s=at_s,
            kv_frames=kv_frames,
        )


def close_session(
    context: SimulationContext,
    device: Device,
    session: SimulatedSession,
    at_s: float,
    done: Callable[[float], None],
) -> None:
    """Send a Close. `done` is told when the server has ended the stream, or the limit for it."""
    software = context.scenario.software
    latest_s = at_s + context.scenario.patience.close_s
    context.record.up_bytes += software.close_bytes
    context.record.down_bytes += software.closed_bytes

    def arrived(t: float) -> None:
        context.at(t, lambda _: session.server.leave(session))
        if t >= latest_s:
            done(latest_s)
            return
        device.lanes.down.send(
            t + context.cloud_message_s,
            software.closed_bytes,
            lambda t: done(min(t, latest_s)),
        )

    device.lanes.up.send(at_s + device.front.message_s, software.close_bytes, arrived)
