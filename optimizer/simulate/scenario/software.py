"""What a scenario says of the software: the deployed model, its drafts, and costs around them."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.artifacts.prefill import PrefillPlace
from optimizer.errors import ScenarioError
from optimizer.simulate.scenario.clients import ContextChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A plan in a few keys, for scenarios without a plan file. `model`: a shipped spec.

    With a `prefill` that is not "edge", with a `context` "handover" (of all groups that do not say
    otherwise) and with `front_splits` the servers hold every layer.
    """

    model: str
    split: int
    front_bits: int = 4
    back_bits: int = 8
    kv_bits: int = 8
    level: str = "q3"
    max_tokens: int = 2048
    prefill_chunk: int = 128
    drafting: str = "off"
    prefill: PrefillPlace = "edge"
    context: ContextChoice = "refuse"
    front_splits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOutcome:
    """One measured round: how many tokens were drafted, and how many of them were accepted.

    Raises ScenarioError when more were accepted than drafted.
    """

    drafts: int
    accepted: int

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.drafts:
            raise ScenarioError("a draft's outcome needs 0 <= accepted <= drafts")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlightFrame:
    """One measured frame of a flight: its rows, and the tokens that it brought (0: it was sent
    ahead on a wrong guess). Raises ScenarioError for more tokens than rows."""

    rows: int
    tokens: int

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= self.rows or self.rows < 1:
            raise ScenarioError("a flight's frame needs rows, and 0 <= tokens <= rows")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFlight:
    """One measured step: its frame, which brought tokens, and those that followed before its answer
    was there. Raises ScenarioError where the first frame brought none."""

    frames: tuple[FlightFrame, ...]

    def __post_init__(self) -> None:
        if not self.frames or not self.frames[0].tokens:
            raise ScenarioError("a flight needs a first frame that brought tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingScenario:
    """How many tokens are drafted, and how many of them are accepted.

    Each drafted token is accepted with probability `acceptance`, until the first rejection;
    `chances`, where given, are those of the first, the second, ... behind the last known token
    instead, and deeper ones are as good as the last. The drafter finds a draft in `proposal_share`
    of the steps. `length`: most drafted tokens a step; with `best_length` the edge's own rule picks
    fewer where they bring more tokens a second. `draft_s`: seconds of the device for each drafted
    token. `ahead`: whether further guesses leave in frames of their own ahead of an answer, by the
    edge's rule; None: as the edge does, with `best_length`, unless a server may be lost.
    `outcomes`: measured rounds. Each step draws one of them instead of the above, because real
    drafts are longer where more of them are accepted. `flights`: measured steps with the frames
    that were sent ahead; each step draws one in place of all that. Raises ScenarioError for values
    out of range.
    """

    acceptance: float = 0.6
    chances: tuple[float, ...] = ()
    proposal_share: float = 1.0
    length: int = 4
    best_length: bool = True
    draft_s: float = 0.0
    ahead: bool | None = None
    outcomes: tuple[DraftOutcome, ...] = ()
    flights: tuple[MeasuredFlight, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1 or not 0 <= self.proposal_share <= 1 or self.length < 0:
            raise ScenarioError("drafting needs chances in [0, 1] and length >= 0")
        if not all(0 <= chance <= 1 for chance in self.chances):
            raise ScenarioError("drafting.chances lie in [0, 1]")

    def chance_at(self, depth: int) -> float:
        """The chance that a guess is accepted when those before it were; depth 1 is the first."""
        if not self.chances:
            return self.acceptance
        return self.chances[min(depth, len(self.chances)) - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """Seconds and bytes of our own code around the models. None: as in the device profiles.

    `edge_message_s`, `cloud_message_s`: each side's network stack, for a round trip. `sample_s`:
    drawing one token. The bytes of an Open and of its answer are those of real messages.
    `connect_round_trips`: round trips before a client's first Open to a server, for TCP, TLS 1.3
    and HTTP/2's settings, for which gRPC waits (2 without TLS). `connect_up_bytes` and
    `connect_down_bytes` are the bytes of all of them. `closed_bytes`: the end of a stream after the
    edge's Close; the device waits for it. Raises ScenarioError for a negative number of trips.

    The defaults were measured on this project's machine; `docs/results/simulator.md` says how.
    """

    edge_message_s: float | None = None
    cloud_message_s: float | None = None
    sample_s: float | None = None
    open_bytes: int = 320
    opened_bytes: int = 96
    close_bytes: int = 64
    closed_bytes: int = 64
    connect_round_trips: int = 3
    connect_up_bytes: int = 1_900
    connect_down_bytes: int = 3_000

    def __post_init__(self) -> None:
        if self.connect_round_trips < 0:
            raise ScenarioError("software: connect_round_trips must not be negative")
