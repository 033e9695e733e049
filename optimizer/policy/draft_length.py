"""How many drafts a round should carry: the number that brings the most tokens per second.

A round with k drafts brings on average

    E(k) = 1 + a_1 + a_1 a_2 + ... + a_1 a_2 ... a_k

tokens, a_i being the chance that the i-th draft is right when those before it were. With one a
for all this is (1 - a^(k+1)) / (1 - a), equation (1) of Leviathan et al. 2023
(arXiv:2211.17192). Across a split the round takes

    T(k) = (k + 1) edge_row_s + k guess_s + rtt_s + (frame_bytes + (k + 1) row_bytes) / up_rate
           + cloud_step_s + k cloud_row_s,

the edge, link and verification terms of the distributed setting (Song et al. 2025, DSD,
arXiv:2511.11733) with the edge's own part written out: here the rows of drafts are the
only edge work. Rounds repeat, so the long-run rate is E(k) / T(k) (renewal-reward theorem), and
k = 0 is plain decoding: drafting that does not pay loses to it in the same comparison.

A single guess can be far surer than the average. It is worth adding when its chance to count
exceeds rate * its extra time: the parametric form of the same ratio (Dinkelbach 1967, doi
10.1287/mnsc.13.7.492), with the rate being the best E(k) / T(k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# A longer round is not worth its rows on any link measured so far. What a frame may carry at most
# is the wire's limit (`protos.limits.MAX_FRAME_DRAFTS`).
MAX_ROUND_DRAFTS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTimes:
    """What the parts of a round cost, as measured so far. Seconds, bytes, bytes per second.

    edge_row_s: the front and the encoder on one row. guess_s: the drafter's own time for a
    guess. rtt_s: the link's latency and everything else that does not grow with the message.
    frame_bytes: of a message, without rows. cloud_step_s: the cloud on a frame of one row, its
    queue included; cloud_row_s: what each further row adds.
    """

    edge_row_s: float
    guess_s: float
    rtt_s: float
    up_bytes_per_s: float
    frame_bytes: float
    row_bytes: float
    cloud_step_s: float
    cloud_row_s: float

    def round_s(self, num_drafts: int) -> float:
        """T(k) of the module's docstring."""
        return self.first_s + num_drafts * self.draft_s

    @property
    def first_s(self) -> float:
        """T(0): a round without drafts."""
        up_s = (self.frame_bytes + self.row_bytes) / self.up_bytes_per_s
        return self.edge_row_s + self.rtt_s + up_s + self.cloud_step_s

    @property
    def draft_s(self) -> float:
        """What one more draft adds to a round."""
        up_s = self.row_bytes / self.up_bytes_per_s
        return self.edge_row_s + self.guess_s + up_s + self.cloud_row_s

    @property
    def ahead_row_s(self) -> float:
        """What a row sent ahead takes of the time until an answer comes: the edge's work or its
        way up the link, whichever is slower, since one goes on beside the other."""
        return max(self.edge_row_s, (self.frame_bytes + self.row_bytes) / self.up_bytes_per_s)


class LengthChoice(NamedTuple):
    """The best number of drafts, the tokens it is expected to bring a round, and their rate."""

    num_drafts: int
    expected_tokens: float
    tokens_per_s: float


def expected_tokens(acceptance: Sequence[float]) -> float:
    """E(k) of the module's docstring, k being len(acceptance): 1 to k + 1 tokens a round."""
    total = reach = 1.0
    for probability in acceptance:
        reach *= probability
        total += reach
    return total


def best_length(
    acceptance: Sequence[float], times: RoundTimes, *, limit: int = MAX_ROUND_DRAFTS
) -> LengthChoice:
    """The k <= limit with the most tokens per second; 0 when drafting does not pay.

    acceptance: a_1, a_2, ...; at most as many drafts as it has entries are considered. Of equal
    rates the shorter round wins.
    """
    best = LengthChoice(0, 1.0, 1.0 / times.first_s)
    tokens = reach = 1.0
    for num_drafts, probability in enumerate(acceptance[:limit], start=1):
        reach *= probability
        tokens += reach
        rate = tokens / times.round_s(num_drafts)
        if rate > best.tokens_per_s:
            best = LengthChoice(num_drafts, tokens, rate)
    return best


def pays(reach: float, times: RoundTimes, tokens_per_s: float) -> bool:
    """Whether one more draft is worth its time.

    reach: the chance that this draft and all before it are right. tokens_per_s: the rate that the
    time could bring otherwise, `best_length(...).tokens_per_s`.
    """
    return reach > tokens_per_s * times.draft_s


def rides_along(reach: float, times: RoundTimes) -> bool:
    """Whether a guess should go in the frame before it, where it could follow in one of its own.

    A frame of its own that stands costs the cloud a step instead of a further row; riding
    along, right or wrong, the guess keeps the rows before it waiting for the edge. Ours.
    """
    return reach * (times.cloud_step_s - times.cloud_row_s) > times.edge_row_s + times.guess_s
