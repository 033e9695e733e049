"""Whether a prompt and its answer fit the plan, and how long the answer may become."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

from edge.device.tokenizer import ChatTokenizer
from edge.errors import ContextLengthError
from edge.generation.completion import CompletionRequest
from optimizer.artifacts.plan import Plan
from optimizer.policy.kv.registry import kv_policy

# A prompt's text may have so many characters beyond what its tokens hold.
PROMPT_SLACK: Final = 1024
# Tokens have about four bytes each. A text with more for each of the plan's tokens is counted in
# slices first, until it is certain that it does not fit: tokenizing all of it takes memory.
SURE_BYTES_PER_TOKEN: Final = 16
SLICE_CHARS: Final = 1 << 14
COUNT_MARGIN: Final = 2  # slices have more tokens than the whole, where they cut words
# A conversation that shifts may be longer than the plan, by this factor.
SHIFTED_PLANS: Final = 8


class LengthRules:
    """See the module's docstring."""

    def __init__(self, plan: Plan, tokenizer: ChatTokenizer) -> None:
        self._plan = plan
        self._tokenizer = tokenizer

    def max_prompt_bytes(self, context: str) -> int:
        """The most bytes of UTF-8 text, templates aside, that a prompt can have and still fit.

        Every token stands for at most as many bytes as the longest one has. context: what happens
        beyond the plan's tokens.
        """
        most = self._plan.max_tokens * self._longest_token_bytes + PROMPT_SLACK
        return most if context == "refuse" else SHIFTED_PLANS * most

    @cached_property
    def _longest_token_bytes(self) -> int:
        return self._tokenizer.longest_token_bytes(self._plan.model.geometry.vocab_size)

    def check_text(self, texts: Sequence[str], request: CompletionRequest) -> None:
        """ContextLengthError when the text cannot fit, as far as that shows without much work."""
        max_tokens = self._plan.max_tokens
        num_chars = sum(map(len, texts))  # at most as many as bytes
        most = self.max_prompt_bytes(request.context)
        if num_chars > most:
            raise ContextLengthError(
                f"the prompt has {num_chars} characters; the plan's {max_tokens} tokens hold at "
                f"most {most}"
            )
        text = "".join(texts)
        if len(text.encode("utf-8", "replace")) <= SURE_BYTES_PER_TOKEN * max_tokens:
            return
        certain = COUNT_MARGIN * max_tokens * (1 if request.context == "refuse" else SHIFTED_PLANS)
        num_tokens = 0
        for begin in range(0, num_chars, SLICE_CHARS):
            num_tokens += len(self._tokenizer.encode(text[begin : begin + SLICE_CHARS]))
            if num_tokens > certain:
                raise ContextLengthError(
                    f"the prompt has more than {max_tokens} tokens, which is what the plan allows "
                    "for prompt and answer together"
                )

    def max_new_tokens(self, num_prompt_tokens: int, request: CompletionRequest) -> int:
        """How many tokens to generate. ContextLengthError when they neither fit nor may shift."""
        policy = kv_policy(request.context)
        room = self._plan.max_tokens - num_prompt_tokens
        asked = request.max_new_tokens
        if policy.evicts and not policy.in_place:
            return max(room, 1) if asked is None else asked
        limit, whose = self._plan.max_tokens, "the plan"
        if policy.hands_over:
            limit, whose = self._plan.model.geometry.context_length, "the model"
            asked = max(room, 1) if asked is None else asked
        if policy.in_place:
            # Without positions of its own the front is refused later, with what to do.
            positions = self._plan.max_positions or self._plan.model.geometry.context_length
            limit, whose = positions, "the front"
            asked = max(room, 1) if asked is None else asked
        room = limit - num_prompt_tokens
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens; {whose} allows "
                f"{limit} for prompt and answer together"
            )
        if asked is not None and asked > room:
            raise ContextLengthError(
                f"prompt ({num_prompt_tokens}) and new tokens ({asked}) exceed {whose}'s "
                f"{limit} tokens: ask for at most {room} new ones"
            )
        return room if asked is None else asked
