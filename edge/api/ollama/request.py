"""The bodies of /api/chat and /api/generate as checked values.

Ollama's defaults apply: a stream unless `stream` is false, temperature 0.8, top_k 40, top_p 0.9.
Options about memory and threads are accepted and unused, because the plan decides them. A request
without a prompt loads the model there; here its answer says that it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from decoding.grammar import Grammar
from edge.api.asked import OWN_FIELDS, ApiRequest, check_fields, completion_of, named_errors
from edge.api.errors import ApiError
from edge.api.fields import (
    check_texts,
    flag_field,
    integer_field,
    maximum_field,
    name_field,
    real_field,
)
from edge.api.messages import conversation
from edge.api.sampling_fields import chat_logprobs, sampling_of, schema_grammar
from edge.api.tools import AskedTools, asked_tools
from edge.device.tokenizer import ChatMessage
from edge.generation.completion import CompletionRequest

TEMPERATURE: Final = 0.8
TOP_K: Final = 40
TOP_P: Final = 0.9
WITHOUT_END: Final = (-1, -2)  # of num_predict: as many as there is room for

_SHARED: Final = frozenset(
    {"model", "format", "options", "stream", "keep_alive", "think", "logprobs", "top_logprobs"}
)
_CHAT: Final = _SHARED | {"messages", "tools"}
_GENERATE: Final = _SHARED | {
    "prompt",
    "system",
    "raw",
    "suffix",
    "images",
    "template",
    "context",
}
# Values that ask for nothing special; any other value asks for something we do not have.
_NOTHING: Final[Mapping[str, tuple[Any, ...]]] = {
    "think": (False,),
    "suffix": ("",),
    "images": ([],),
    "template": ("",),
    "context": ([],),
}
_INSTEAD: Final[Mapping[str, str]] = {
    "think": "thoughts are not told apart from the answer here",
    "images": "the model reads text only",
    "template": "the model's own template is used",
    "context": "send the conversation to /api/chat",
}
# Of memory and threads, which the plan and the command decide.
_RESOURCES: Final = frozenset(
    {
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "num_keep",
        "numa",
        "low_vram",
        "f16_kv",
        "use_mmap",
        "use_mlock",
    }
)
_NO_OPTION: Final[Mapping[str, tuple[Any, ...]]] = {
    "mirostat": (0,),
    "tfs_z": (1, 1.0),
    "typical_p": (1, 1.0),
    "repeat_last_n": (-1,),
    "penalize_newline": (True,),
}
_NO_OPTION_INSTEAD: Final[Mapping[str, str]] = {
    "repeat_last_n": "the penalties count every token (-1)",
}
_OPTIONS: Final = (
    _RESOURCES
    | OWN_FIELDS
    | set(_NO_OPTION)
    | {
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "seed",
        "stop",
        "num_predict",
        "repeat_penalty",
        "frequency_penalty",
        "presence_penalty",
        "mirostat_tau",  # without mirostat they change nothing
        "mirostat_eta",
    }
)


def ollama_chat(body: Mapping[str, Any], *, default: CompletionRequest) -> ApiRequest:
    """The body of /api/chat. ApiError names the field that is wrong."""
    check_texts(body, "")
    check_fields(body, _CHAT, nothing=_NOTHING, instead=_INSTEAD)
    messages = body.get("messages", [])
    prompts = () if messages == [] else (conversation(_chat_messages(messages)),)
    tools = asked_tools({"tools": body.get("tools")})
    return _request(body, prompts=prompts, tools=tools, default=default)


def ollama_generate(
    body: Mapping[str, Any], *, default: CompletionRequest, has_template: bool
) -> ApiRequest:
    """The body of /api/generate. ApiError names the field that is wrong.

    has_template: whether the model has a chat template; without one a prompt goes in as it is.
    """
    check_texts(body, "")
    check_fields(body, _GENERATE, nothing=_NOTHING, instead=_INSTEAD)
    prompt, system = name_field(body, "prompt", ""), name_field(body, "system", "")
    is_raw = flag_field(body, "raw") or not has_template
    if system and is_raw:
        raise ApiError("system: a raw prompt goes in without a template", param="system")
    prompts: tuple[str | list[ChatMessage], ...] = ()
    if prompt and is_raw:
        prompts = (prompt,)
    elif prompt:
        turns = [{"role": "system", "content": system}] if system else []
        prompts = (conversation([*turns, {"role": "user", "content": prompt}]),)
    return _request(body, prompts=prompts, tools=None, default=default)


def _request(
    body: Mapping[str, Any],
    *,
    prompts: tuple[str | list[ChatMessage], ...],
    tools: AskedTools | None,
    default: CompletionRequest,
) -> ApiRequest:
    options = _checked_options(body.get("options", {}))
    with named_errors():
        sampling = sampling_of(options, logprobs=chat_logprobs(body), grammar=_grammar(body))
    return ApiRequest(
        prompts=prompts,
        completion=completion_of(
            options, sampling=sampling, max_tokens=_max_tokens(options), default=default
        ),
        stream=flag_field(body, "stream", True),
        tools=tools,
    )


def _checked_options(value: Any) -> dict[str, Any]:
    """The options under the names that the other endpoints use, with Ollama's defaults."""
    if not isinstance(value, dict):
        raise ApiError("options must be an object", param="options")
    check_fields(value, _OPTIONS, nothing=_NO_OPTION, instead=_NO_OPTION_INSTEAD)
    options = {"temperature": TEMPERATURE, "top_k": TOP_K, "top_p": TOP_P, **value}
    options["repetition_penalty"] = real_field(value, "repeat_penalty", 1.0)
    seed = integer_field(value, "seed")
    if seed is not None and seed < 0:
        del options["seed"]  # another one each time
    return options


def _max_tokens(options: Mapping[str, Any]) -> int | None:
    if integer_field(options, "num_predict") in WITHOUT_END:
        return None
    return maximum_field(options, "num_predict")


def _grammar(body: Mapping[str, Any]) -> Grammar | None:
    """What `format` asks for."""
    given = body.get("format", "")
    if given == "json":
        return Grammar(kind="json_object")
    if isinstance(given, dict):
        return schema_grammar(given, "format")
    if given != "":
        raise ApiError('format must be "json" or a JSON schema', param="format")
    return None


def _chat_messages(value: Any) -> Any:
    """Messages as OpenAI's chats have them. What is wrong in them is left for `conversation`."""
    if not isinstance(value, list):
        return value
    return [
        _chat_message(message, f"messages[{index}]") if isinstance(message, dict) else message
        for index, message in enumerate(value)
    ]


def _chat_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if message.get("images", []) != []:
        raise ApiError(f"{where}.images: the model reads text only", param=f"{where}.images")
    if message.get("thinking", "") != "":
        raise ApiError(
            f"{where}.thinking: {_INSTEAD['think']}: put it into content",
            param=f"{where}.thinking",
        )
    made = {
        name: value
        for name, value in message.items()
        if name not in ("images", "thinking", "tool_name")
    }
    made.setdefault("content", "")
    if "tool_name" in message:
        made["name"] = message["tool_name"]
    if isinstance(calls := message.get("tool_calls"), list):
        made["tool_calls"] = [_chat_call(call) for call in calls]
    return made


def _chat_call(call: Any) -> Any:
    """A call whose arguments are text. Ollama has them as an object."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    given = {name: value for name, value in function.items() if name != "index"}
    if isinstance(given.get("arguments"), dict):
        given["arguments"] = json.dumps(given["arguments"])
    return {**call, "function": given}
