"""The log-probabilities of a prompt's tokens, as the server's answers bring them."""

from __future__ import annotations

from decoding.scores import TokenScore
from edge.errors import PeerError
from edge.generation.token_source import NewToken
from protos.messages import Frame, Result
from protos.score_fields import grouped_top


class ArrivedScores:
    """Of one generation; `complete` once the prompt's last frame is answered."""

    def __init__(self) -> None:
        self._scores: list[TokenScore] = []

    def take(self, frame: Frame, result: Result) -> None:
        """Add those of one answer, which `edge.generation.answer_checks` has passed."""
        count = len(result.prompt_logprobs)
        token_ids = frame.token_ids[frame.first_position == 0 :][:count]
        top = grouped_top(result.prompt_top_ids, result.prompt_top_logprobs, count)
        self._scores.extend(map(TokenScore, token_ids, result.prompt_logprobs, top))

    def joined_to(self, new: list[NewToken], num_prompt: int) -> list[NewToken]:
        """The answer's first tokens, with those of the prompt beside the first one. Raises as
        `complete`."""
        return [new[0]._replace(prompt_scores=self.complete(num_prompt)), *new[1:]]

    def complete(self, num_prompt: int) -> tuple[TokenScore, ...]:
        """Those of all tokens but the first. PeerError where the server left some out."""
        if len(self._scores) != num_prompt - 1:
            raise PeerError(
                f"the server broke the protocol: {len(self._scores)} log-probabilities for a "
                f"prompt of {num_prompt} tokens"
            )
        return tuple(self._scores)
