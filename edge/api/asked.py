"""What a request of any endpoint asks for, as checked values, and the fields that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from decoding.params import MAX_SEED, SamplingParams
from edge.api.errors import ApiError, shown, shown_value
from edge.api.fields import flag_field, name_field, number_field
from edge.api.tools import AskedTools
from edge.device.tokenizer import ChatMessage
from edge.errors import InputError
from edge.generation.completion import CompletionRequest

MAX_STOPS: Final = 16
OWN_FIELDS: Final = frozenset({"level", "draft", "deadline_tbt_s"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request, checked. prompts: each a text, token ids, or a conversation.

    num_choices: answers to each prompt. echo: the prompt stands before the answer. tools: what the
    model may call; None when there is nothing to call. repeated: fields of the request that its
    answer repeats.
    """

    prompts: tuple[str | list[int] | list[ChatMessage], ...]
    completion: CompletionRequest
    stream: bool
    include_usage: bool = False
    include_splitpoint: bool = False
    num_choices: int = 1
    echo: bool = False
    tools: AskedTools | None = None
    repeated: Mapping[str, Any] = field(default_factory=dict)

    def choice(self, index: int) -> CompletionRequest:
        """The request of one of a prompt's answers: each has a seed of its own."""
        sampling = self.completion.sampling
        seed = (sampling.seed + index) & MAX_SEED
        return replace(self.completion, sampling=replace(sampling, seed=seed))


def completion_of(
    body: Mapping[str, Any],
    *,
    sampling: SamplingParams,
    max_tokens: int | None,
    default: CompletionRequest,
) -> CompletionRequest:
    """What to generate. Beside what is given it reads `stop` and the fields of ours."""
    with named_errors():
        return CompletionRequest(
            max_new_tokens=max_tokens,
            sampling=sampling,
            stop=stops_field(body),
            level=name_field(body, "level", default.level),
            draft=name_field(body, "draft", default.draft),
            deadline_tbt_s=number_field(body, "deadline_tbt_s", default.deadline_tbt_s),
            context=default.context,
            context_tokens=default.context_tokens,
            prefill=default.prefill,
            prefer=default.prefer,
            move_by=default.move_by,
            adapt=default.adapt,
        )


@contextmanager
def named_errors() -> Iterator[None]:
    """Errors that name the parameter become an ApiError."""
    try:
        yield
    except (ValueError, InputError) as error:
        raise ApiError(str(error)) from error


def check_fields(
    body: Mapping[str, Any],
    known: frozenset[str],
    *,
    nothing: Mapping[str, tuple[Any, ...]],
    instead: Mapping[str, str],
) -> None:
    """ApiError for a field that would be ignored.

    nothing: those of the known fields that we do not have, with the values that ask for nothing.
    instead: what to say about them.
    """
    for name in body:
        if name not in known:
            raise ApiError(f"unrecognized request argument supplied: {shown(name)}", param=name)
    for name, values in nothing.items():
        if name in body and not _says_nothing(body[name], values):
            given = f"{shown_value(body[name])} is not supported here"
            raise ApiError(f"{name}: {instead.get(name, given)}", param=name)


def _says_nothing(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `values`; true and false are no numbers."""
    return any(
        value == known and isinstance(value, bool) is isinstance(known, bool) for known in values
    )


def stream_options(body: Mapping[str, Any], known: frozenset[str]) -> Mapping[str, Any]:
    """What `stream_options` asks for. ApiError for options that would be ignored."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError("stream_options must be an object", param="stream_options")
    if options and not body.get("stream"):
        raise ApiError("stream_options needs stream", param="stream_options")
    for name in options:
        if name not in known:
            raise ApiError(f"stream_options.{shown(name)}: unknown option", param="stream_options")
    if flag_field(options, "include_obfuscation"):
        raise ApiError("include_obfuscation is not supported here", param="stream_options")
    return options


def stops_field(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The field `stop`: one text or a list of them."""
    value = body.get("stop")
    if value is None:
        return ()
    stops: Sequence[Any] = [value] if isinstance(value, str) else value
    if (
        not isinstance(stops, list)
        or len(stops) > MAX_STOPS
        or not all(isinstance(stop, str) and stop for stop in stops)
    ):
        raise ApiError(f"stop must be a text or a list of up to {MAX_STOPS} texts", param="stop")
    return tuple(stops)
