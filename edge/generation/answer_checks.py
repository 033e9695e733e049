"""Whether an answer fits the frame it answers: what a server says is checked before it is used.

`protos.decode` has checked every number's range by then. These checks need the question. They are
pure, and each failure is a SessionError in one line.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edge.errors import SessionError
from protos.limits import MAX_TOKENS
from protos.messages import Frame, Result


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTerms:
    """What one generation's answers must keep to.

    vocab_size: of the model; None: any token id. with_logprobs: whether log-probabilities were
    asked for, and num_top: of how many most likely tokens beside each. num_prompt: tokens of the
    prompt. prompt_top: of how many most likely tokens beside each of these; None: their own
    log-probabilities were not asked for. max_tokens: the session's, prompt and output together.
    with_entropies: whether each token's surprise was asked for, of prompt and answer.
    """

    vocab_size: int | None = None
    with_logprobs: bool = False
    max_tokens: int = MAX_TOKENS
    num_top: int = 0
    num_prompt: int = 0
    prompt_top: int | None = None
    with_entropies: bool = False

    def top_of(self, count: int) -> int:
        """How many most likely tokens there are where `count` were asked for."""
        return count if self.vocab_size is None else min(count, self.vocab_size)


def check_answer(frame: Frame, result: Result, terms: AnswerTerms, *, is_void: bool) -> None:
    """Raise SessionError unless `result` is an answer that `frame` can have.

    is_void: the frame was sent ahead on a wrong guess, so the server has run nothing for it.
    """
    _check_prompt_scores(frame, result, terms, is_void=is_void)
    if is_void or not frame.want_token:
        kept = frame.first_position + len(frame.token_ids)
        if result.num_tokens > terms.max_tokens or not (is_void or result.num_tokens == kept):
            raise _wrong_count(result, min(kept, terms.max_tokens))
        return
    _check_tokens(frame, result)
    _check_vocabulary(result, terms.vocab_size)
    _check_top(result, terms)
    if terms.with_entropies and len(result.entropies) != len(result.token_ids):
        raise SessionError(f"answer {result.sequence} does not say how surprising each token was")
    if terms.with_logprobs and len(result.logprobs) != len(result.token_ids):
        raise SessionError(
            f"answer {result.sequence} has {len(result.logprobs)} log-probabilities for "
            f"{len(result.token_ids)} tokens"
        )
    # The last token of an answer is not in the cache yet: the next frame brings it.
    kept = frame.first_position + len(frame.token_ids) - frame.num_drafts
    kept += len(result.token_ids) - 1
    if result.num_tokens != kept:
        raise _wrong_count(result, kept)


def _check_tokens(frame: Frame, result: Result) -> None:
    """The tokens are one more than accepted drafts, and these were sent."""
    if not 1 <= len(result.token_ids) <= frame.num_drafts + 1:
        raise SessionError(
            f"answer {result.sequence} has {len(result.token_ids)} tokens for "
            f"{frame.num_drafts} drafts"
        )
    num_accepted = len(result.token_ids) - 1
    if result.token_ids[:-1] != frame.token_ids[-frame.num_drafts :][:num_accepted]:
        raise SessionError(f"answer {result.sequence} accepts drafts that were not sent")


def _check_top(result: Result, terms: AnswerTerms) -> None:
    """Each token comes with as many most likely ones as were asked for."""
    expected = terms.top_of(terms.num_top) if terms.num_top else 0
    if any(len(top) != expected for top in result.top or ((),) * len(result.token_ids)):
        raise SessionError(f"answer {result.sequence} has not {expected} top tokens for each token")
    _check_known(result, [token.token_id for top in result.top for token in top], terms)


def _check_prompt_scores(
    frame: Frame, result: Result, terms: AnswerTerms, *, is_void: bool
) -> None:
    """Each prompt token of the frame but the first of all comes with its log-probability."""
    expected, num_top = 0, 0
    end = min(frame.first_position + len(frame.token_ids), terms.num_prompt)
    num_scored = 0 if is_void else max(0, end - max(frame.first_position, 1))
    if terms.prompt_top is not None:
        expected, num_top = num_scored, terms.top_of(terms.prompt_top)
    if terms.with_entropies and len(result.prompt_entropies) != num_scored:
        raise SessionError(
            f"answer {result.sequence} says of {len(result.prompt_entropies)} tokens of the prompt "
            f"how surprising they were, not of {num_scored}"
        )
    if len(result.prompt_logprobs) != expected:
        raise SessionError(
            f"answer {result.sequence} has {len(result.prompt_logprobs)} log-probabilities for "
            f"{expected} tokens of the prompt"
        )
    if len(result.prompt_top_ids) != expected * num_top:
        raise SessionError(
            f"answer {result.sequence} has not {num_top} top tokens for each token of the prompt"
        )
    _check_known(result, result.prompt_top_ids, terms)


def _check_known(result: Result, token_ids: Collection[int], terms: AnswerTerms) -> None:
    if token_ids and terms.vocab_size is not None and max(token_ids) >= terms.vocab_size:
        raise SessionError(
            f"the server answered top token {max(token_ids)}, the vocabulary has {terms.vocab_size}"
        )


def _check_vocabulary(result: Result, vocab_size: int | None) -> None:
    unknown = [
        token for token in result.token_ids if vocab_size is not None and token >= vocab_size
    ]
    if unknown:
        raise SessionError(
            f"the server answered token {unknown[0]}, the vocabulary has {vocab_size}"
        )


def _wrong_count(result: Result, expected: int) -> SessionError:
    return SessionError(
        f"answer {result.sequence} says that the server's cache holds {result.num_tokens} tokens, "
        f"where the frames make {expected}"
    )
