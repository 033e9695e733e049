"""Answers of a second model that lies wholly on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge.device.whole_model import WholeModel
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.local import LocalGeneration
from edge.generation.local_grammars import LocalGrammars
from edge.generation.token_source import TokenSource
from optimizer.policy.retry import Clock


class Rest(NamedTuple):
    """What brings the rest of an answer, and how many tokens of it there is room for."""

    source: TokenSource
    room: int


class DeviceModel:
    """See the module's docstring. end_token_ids: for answers that follow a grammar."""

    def __init__(self, model: WholeModel, *, clock: Clock, end_token_ids: Sequence[int]) -> None:
        self._model = model
        self._clock = clock
        self._grammars = LocalGrammars(
            model.tokenizer_path,
            vocab_size=model.plan.model.geometry.vocab_size,
            end_token_ids=end_token_ids,
        )

    def rest(self, request: CompletionRequest, num_prompt: int, tokens: Sequence[int]) -> Rest:
        """What goes on behind `tokens`. InputError says why this model cannot.

        num_prompt: how many of the first tokens are no part of the answer.
        """
        plan, sampling = self._model.plan, request.sampling
        vocab_size = plan.model.geometry.vocab_size
        if max(*tokens, *sampling.logit_bias, 0) >= vocab_size:
            raise InputError(
                f"the device's own model has {vocab_size} tokens, fewer than the text needs"
            )
        room = plan.max_tokens - len(tokens)
        if room < 1:
            raise InputError(
                f"the device's own model holds {plan.max_tokens} tokens, and the text has "
                f"{len(tokens)}"
            )
        source = LocalGeneration(
            front=self._model.engine(),
            sampling=sampling,
            chunk_tokens=plan.prefill_chunk,
            clock=self._clock,
            num_prompt=num_prompt,
            matcher=self._grammars.matcher(sampling.grammar),
        )
        return Rest(source, room)
