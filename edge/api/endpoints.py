"""The endpoints that generate: how each reads a body, and the shape of its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from edge.api.answers import AnswerFormat
from edge.api.asked import ApiRequest
from edge.api.prepare import MakeShape
from edge.api.requests import chat_request, completions_request
from edge.api.responses.request import responses_request
from edge.api.responses.shape import ResponseShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """parse: a body as a checked request. shape: of the request's answer."""

    parse: Callable[..., ApiRequest]
    shape: MakeShape


CHAT: Final = Endpoint(parse=chat_request, shape=partial(AnswerFormat.of, is_chat=True))
COMPLETIONS: Final = Endpoint(
    parse=completions_request, shape=partial(AnswerFormat.of, is_chat=False)
)
RESPONSES: Final = Endpoint(parse=responses_request, shape=ResponseShape)
