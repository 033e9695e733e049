"""Request bodies of the OpenAI API as checked values.

A field that asks for something this server cannot do is refused by name. No field that would change
the answer is silently ignored. Fields that only describe the caller (`user`, `metadata`, ...) are
accepted and unused. Beside OpenAI's own fields there are top_k, min_p and repetition_penalty, as in
other local servers, and Splitpoint's level, draft and deadline_tbt_s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from decoding.params import MAX_TOP_LOGPROBS, SamplingParams
from edge.api.asked import (
    OWN_FIELDS,
    ApiRequest,
    check_fields,
    completion_of,
    named_errors,
    stream_options,
)
from edge.api.errors import ApiError
from edge.api.fields import (
    check_texts,
    count_field,
    flag_field,
    is_integer,
    maximum_field,
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
from edge.generation.completion import CompletionRequest

COMPLETIONS_MAX_TOKENS: Final = 16  # what OpenAI's completions give when nothing is asked for
MAX_CHOICES: Final = 8  # of one prompt
MAX_ANSWERS: Final = 128  # of one request: prompts, and choices of each

_SHARED: Final = (
    SAMPLING_FIELDS
    | OWN_FIELDS
    | {
        "model",
        "n",
        "stream",
        "stream_options",
        "logprobs",
        "max_tokens",
        "response_format",
        # They describe the caller or concern OpenAI's own service; they change no token here.
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
    }
)
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


def chat_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/chat/completions. ApiError names the field that is wrong."""
    check_texts(body, "")
    check_fields(body, _CHAT, nothing=_NOTHING, instead=_INSTEAD)
    max_tokens = maximum_field(body, "max_completion_tokens") or maximum_field(body, "max_tokens")
    tools = asked_tools(body)
    grammar = response_grammar(body)
    if tools is not None and tools.grammar is not None:
        if grammar is not None:
            raise ApiError(
                "response_format: a forced tool call has a format already", param="response_format"
            )
        grammar = tools.grammar
    with named_errors():
        sampling = sampling_of(body, logprobs=chat_logprobs(body), grammar=grammar)
    return _request(
        body,
        prompts=(conversation(body.get("messages")),),
        max_tokens=max_tokens,
        sampling=sampling,
        default=default,
        tools=tools,
    )


def completions_request(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /v1/completions. ApiError names the field that is wrong."""
    check_texts(body, "")
    check_fields(body, _COMPLETIONS, nothing=_NOTHING, instead=_INSTEAD)
    logprobs = count_field(body, "logprobs", None, low=0, high=MAX_TOP_LOGPROBS)
    echo = flag_field(body, "echo")
    with named_errors():
        sampling = sampling_of(
            body,
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
            grammar=response_grammar(body),
        )
    return _request(
        body,
        prompts=_prompts(body.get("prompt")),
        max_tokens=maximum_field(body, "max_tokens") or COMPLETIONS_MAX_TOKENS,
        sampling=sampling,
        default=default,
        echo=echo,
    )


def _request(
    body: Mapping[str, Any],
    *,
    prompts: tuple[str | list[int] | list[ChatMessage], ...],
    max_tokens: int | None,
    sampling: SamplingParams,
    default: CompletionRequest,
    echo: bool = False,
    tools: AskedTools | None = None,
) -> ApiRequest:
    options = stream_options(body, _STREAM_OPTIONS)
    num_choices = count_field(body, "n", 1, low=1, high=MAX_CHOICES) or 1
    if num_choices * len(prompts) > MAX_ANSWERS:
        raise ApiError(f"prompt and n: at most {MAX_ANSWERS} answers a request", param="prompt")
    return ApiRequest(
        prompts=prompts,
        completion=completion_of(body, sampling=sampling, max_tokens=max_tokens, default=default),
        stream=flag_field(body, "stream"),
        include_usage=flag_field(options, "include_usage"),
        include_splitpoint=flag_field(options, "include_splitpoint"),
        num_choices=num_choices,
        echo=echo,
        tools=tools,
    )


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
