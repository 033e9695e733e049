"""What a session does where tokens may leave its cache: which stay, and how surprising each was.

The edge decides which tokens stay (`optimizer.policy.kv`), because its front has to keep the same
ones. The server says how surprising tokens were where the edge asks for that.
"""

from __future__ import annotations

from dataclasses import replace

from cloud.errors import BadFrameError
from cloud.kv.kept import keep_places
from cloud.kv.pool import KvLease
from decoding.params import SamplingParams
from decoding.sampler import Sampled
from protos.entropy_bytes import entropy_bytes
from protos.kept_places import bytes_to_places
from protos.messages import Frame, Open, Result


class LeavingTokens:
    """Of one session. max_positions: how far positions may reach; 0: no token leaves. reports:
    whether the edge asks how surprising tokens were."""

    def __init__(self, max_positions: int = 0, *, reports: bool = False) -> None:
        self.max_positions = max_positions
        self.reports = reports
        self.floor = 0  # tokens that were in the cache when the last ones left

    def drawing_params(self, sampling: SamplingParams) -> SamplingParams:
        """Draw with these: the same tokens, and their log-probabilities where they are needed."""
        return replace(sampling, logprobs=True) if self.reports else sampling

    def apply(self, frame: Frame, lease: KvLease, tokens: list[int]) -> list[int]:
        """Let tokens leave before the frame's rows run; returns the places that they had.

        tokens: those in the cache, changed in place. Raises BadFrameError for places that there are
        not, and where the session has not asked that tokens may leave.
        """
        if not self.max_positions:
            raise BadFrameError(f"frame {frame.sequence}: no token may leave in this session")
        places, num_tokens = bytes_to_places(frame.kept)
        if num_tokens > lease.length or frame.first_position != len(places):
            raise BadFrameError(
                f"frame {frame.sequence} keeps {len(places)} of {num_tokens} tokens and begins at "
                f"{frame.first_position}, the cache has {lease.length} tokens"
            )
        lease.rollback(num_tokens)  # refused guesses of a replayed frame may be there
        gone = sorted({*range(num_tokens)} - {*places})
        keep_places(lease, places)
        tokens[:] = [tokens[place] for place in places]
        self.floor = len(places)
        return gone

    def check_reach(self, frame: Frame, lease: KvLease) -> None:
        """BadFrameError for a row beyond the positions that were granted."""
        end = frame.first_position + len(frame.token_ids) + lease.num_left
        if lease.num_left and end > self.max_positions:
            raise BadFrameError(
                f"frame {frame.sequence} reaches position {end}, the session reserved "
                f"{self.max_positions}"
            )

    def reported(self, result: Result, chosen: list[Sampled]) -> Result:
        """`result` with bytes in the place of the prompt's log-probabilities."""
        if not self.reports:
            return result
        return replace(
            result,
            entropies=entropy_bytes(token.logprob for token in chosen),
            prompt_entropies=entropy_bytes(result.prompt_logprobs),
            prompt_logprobs=(),
        )


def at_positions(frame: Frame, lease: KvLease) -> Frame:
    """The frame at its first row's position, which is beyond its place once tokens have left."""
    left = lease.num_left
    return replace(frame, first_position=frame.first_position + left) if left else frame


def leaving_tokens(request: Open, max_positions: int) -> LeavingTokens:
    """Of a session whose server lets tokens leave up to `max_positions`; 0: it lets none leave."""
    granted = min(request.max_positions, max_positions)
    return LeavingTokens(granted, reports=request.entropies)
