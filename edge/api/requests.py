"""Request bodies of the OpenAI API as checked values.

A field that asks for something this server cannot do is refused by name. No field that would change
the answer is silently ignored. Fields that only describe the caller (`user`, `metadata`, ...) are
accepted and unused. Beside OpenAI's own fields there are top_k, min_p and repetition_penalty, as in
other local servers, and Splitpoint's level, draft and deadline_tbt_s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from decoding.params import MAX_SEED, MAX_TOP_LOGPROBS, SamplingParams
from edge.api.errors import ApiError, shown, shown_value
from edge.api.fields import (
    check_texts,
    count_field,
    flag_field,
    is_integer,
    maximum_field,
    name_field,
    number_field,
)
from edge.api.messages import conversation
from edge.api.sampling_fields import (
    SAMPLING_FIELDS,
    chat_logprobs,
    response_grammar,
    sampling_of,
)
from edge.api.tools import AskedTools, asked_tools
from edge.device.tokenizer import ChatMessage
from edge.errors import InputError
from edge.generation.completion import CompletionRequest

COMPLETIONS_MAX_TOKENS: Final = 16  # what OpenAI's completions give when nothing is asked for
MAX_STOPS: Final = 16
MAX_CHOICES: Final = 8  # of one prompt
MAX_ANSWERS: Final = 128  # of one request: prompts, and choices of each

_SHARED: Final = SAMPLING_FIELDS | {
    "model",
    "n",
    "stream",
    "stream_options",
    "logprobs",
    "max_tokens",
    "level",
    "draft",
    "deadline_tbt_s",
    "response_format",
    # They describe the caller or concern OpenAI's own service; they change no token here.
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}
_CHAT: Final = _SHARED | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
}
_COMPLETIONS: Final = _SHARED | {"prompt", "suffix", "echo", "best_of"}
# Values that ask for nothing special; any other value asks for something we do not have.
_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (None, 1),
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
}
_INSTEAD: Final[Mapping[str, str]] = {
    "best_of": "one answer is made for each choice: use n",
    "functions": "the old form of tools: use tools",
    "function_call": "the old form of tool_choice: use tool_choice",
}
_STREAM_OPTIONS: Final = frozenset({"include_usage", "include_obfuscation", "include_splitpoint"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request, checked. prompts: each a text, token ids, or a conversation.

    num_choices: answers to each prompt. echo: the prompt stands before the answer. tools: what the
    model may call; None when there is nothing to call.
    """

    prompts: tuple[str | list[int] | list[ChatMessage], ...]
    completion: CompletionRequest
    is_chat: bool
    stream: bool
    include_usage: bool
    include_splitpoint: bool = False
    num_choices: int = 1
    echo: bool = False
    tools: AskedTools | None = None

    def choice(self, index: int) -> CompletionRequest:
        """The request of one of a prompt's answers: each has a seed of its own."""
        sampling = self.completion.sampling
        seed = (sampling.seed + index) & MAX_SEED
        return replace(self.completion, sampling=replace(sampling, seed=seed))


def chat_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/chat/completions. ApiError names the field that is wrong."""
    check_texts(body, "")
    _check_fields(body, _CHAT)
    max_tokens = maximum_field(body, "max_completion_tokens") or maximum_field(body, "max_tokens")
    tools = asked_tools(body)
    grammar = response_grammar(body)
    if tools is not None and tools.grammar is not None:
        if grammar is not None:
            raise ApiError(
                "response_format: a forced tool call has a format already", param="response_format"
            )
        grammar = tools.grammar
    with _named():
        sampling = sampling_of(body, logprobs=chat_logprobs(body), grammar=grammar)
    return _request(
        body,
        prompts=(conversation(body.get("messages")),),
        is_chat=True,
        max_tokens=max_tokens,
        sampling=sampling,
        default=default,
        tools=tools,
    )


def completions_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/completions. ApiError names the field that is wrong."""
    check_texts(body, "")
    _check_fields(body, _COMPLETIONS)
    logprobs = count_field(body, "logprobs", None, low=0, high=MAX_TOP_LOGPROBS)
    echo = flag_field(body, "echo")
    with _named():
        sampling = sampling_of(
            body,
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
            grammar=response_grammar(body),
        )
    return _request(
        body,
        prompts=_prompts(body.get("prompt")),
        is_chat=False,
        max_tokens=maximum_field(body, "max_tokens") or COMPLETIONS_MAX_TOKENS,
        sampling=sampling,
        default=default,
        echo=echo,
    )


@contextmanager
def _named() -> Iterator[None]:
    """Errors that name the parameter become an ApiError."""
    try:
        yield
    except (ValueError, InputError) as error:
        raise ApiError(str(error)) from error


def _request(
    body: Mapping[str, Any],
    *,
    prompts: tuple[str | list[int] | list[ChatMessage], ...],
    is_chat: bool,
    max_tokens: int | None,
    sampling: SamplingParams,
    default: CompletionRequest,
    echo: bool = False,
    tools: AskedTools | None = None,
) -> ApiRequest:
    include_usage = _include_usage(body)
    num_choices = count_field(body, "n", 1, low=1, high=MAX_CHOICES) or 1
    if num_choices * len(prompts) > MAX_ANSWERS:
        raise ApiError(f"prompt and n: at most {MAX_ANSWERS} answers a request", param="prompt")
    with _named():
        completion = CompletionRequest(
            max_new_tokens=max_tokens,
            sampling=sampling,
            stop=_stops(body.get("stop")),
            level=name_field(body, "level", default.level),
            draft=name_field(body, "draft", default.draft),
            deadline_tbt_s=number_field(body, "deadline_tbt_s", default.deadline_tbt_s),
            context=default.context,
            prefill=default.prefill,
            prefer=default.prefer,
        )
    return ApiRequest(
        prompts=prompts,
        completion=completion,
        is_chat=is_chat,
        stream=flag_field(body, "stream"),
        include_usage=include_usage,
        include_splitpoint=flag_field(body.get("stream_options") or {}, "include_splitpoint"),
        num_choices=num_choices,
        echo=echo,
        tools=tools,
    )


def _check_fields(body: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in body:
        if name not in known:
            raise ApiError(f"unrecognized request argument supplied: {shown(name)}", param=name)
    for name, values in _NOTHING.items():
        if name in body and not _says_nothing(body[name], values):
            given = f"{shown_value(body[name])} is not supported here"
            raise ApiError(f"{name}: {_INSTEAD.get(name, given)}", param=name)


def _says_nothing(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether `value` is one of `values`; true and false are no numbers."""
    return any(
        value == known and isinstance(value, bool) is isinstance(known, bool) for known in values
    )


def _include_usage(body: Mapping[str, Any]) -> bool:
    """What `stream_options` asks for. ApiError for options that would be ignored."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise ApiError("stream_options must be an object", param="stream_options")
    if options and not body.get("stream"):
        raise ApiError("stream_options needs stream", param="stream_options")
    for name in options:
        if name not in _STREAM_OPTIONS:
            raise ApiError(f"stream_options.{shown(name)}: unknown option", param="stream_options")
    if flag_field(options, "include_obfuscation"):
        raise ApiError("include_obfuscation is not supported here", param="stream_options")
    return flag_field(options, "include_usage")


def _prompts(value: Any) -> tuple[str | list[int], ...]:
    """One text or list of token ids, or a list of them."""
    several = value if isinstance(value, list) and value and not is_integer(value[0]) else [value]
    if len(several) > MAX_ANSWERS:
        raise ApiError(f"prompt: at most {MAX_ANSWERS} prompts a request", param="prompt")
    return tuple(map(_prompt, several))


def _prompt(value: Any) -> str | list[int]:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(is_integer(item) for item in value):
        return list(value)
    raise ApiError("prompt must be texts or lists of token ids", param="prompt")


def _stops(value: Any) -> tuple[str, ...]:
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
