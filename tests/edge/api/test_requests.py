"""Bodies become checked values; whatever this model cannot do is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from edge.api.errors import ApiError, api_error
from edge.api.requests import chat_request, completions_request
from edge.errors import BusyError, InputError, LostError, RefusedError, SessionError
from edge.generation.completion import CompletionRequest

DEFAULT = CompletionRequest(level="q3", deadline_tbt_s=0.2)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER_TOOL = {"type": "function", "function": {"name": "x"}}
LONG_FORMAT = {"type": "json_schema", "json_schema": {"schema": {"a": "x" * 70_000}}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def test_a_chat_with_everything_in_it() -> None:
    asked = chat_request(
        {
            **CHAT,
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}] * 2},
            ],
            "max_completion_tokens": 7,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 3,
            "seed": -1,
            "stop": "x",
            "logprobs": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "level": "q5",
            "user": "somebody",
        },
        default=DEFAULT,
    )
    assert asked.prompts[0] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "aa"},
    ]
    assert asked.stream
    assert asked.include_usage
    completion = asked.completion
    assert (completion.max_new_tokens, completion.level, completion.stop) == (7, "q5", ("x",))
    assert completion.deadline_tbt_s == 0.2
    assert completion.sampling.greedy
    assert completion.sampling.logprobs
    assert (completion.sampling.top_k, completion.sampling.seed) == (3, 2**64 - 1)


def test_defaults_are_openais() -> None:
    chat = chat_request(CHAT, default=DEFAULT).completion
    assert (chat.max_new_tokens, chat.sampling.temperature, chat.level) == (None, 1.0, "q3")
    text = completions_request({"model": "m", "prompt": "x"}, default=DEFAULT).completion
    assert text.max_new_tokens == 16
    seeds = {chat_request(CHAT, default=DEFAULT).completion.sampling.seed for _ in range(3)}
    assert len(seeds) == 3


def test_auto_that_is_asked_for_is_not_the_servers_default() -> None:
    default = CompletionRequest(level="q3", draft="off")
    auto = chat_request({**CHAT, "level": "auto", "draft": "auto"}, default=default).completion
    assert (auto.level, auto.draft) == ("auto", "auto")


@pytest.mark.parametrize("prompt", ["abc", ["abc"], [1, 2], [[1, 2]]])
def test_the_four_ways_to_write_one_prompt(prompt: Any) -> None:
    asked = completions_request({"model": "m", "prompt": prompt}, default=DEFAULT)
    assert asked.prompts in (("abc",), ([1, 2],))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"a": "x" * 70_000}},
                }
            },
            "response_format",
        ),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"presence_penalty": "much"}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 1, "05": 2}}, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "<|im_end|>"}}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, "tools[1]"),
        ({"tools": [TOOL] * 129}, "tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"temprature": 1}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool"}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [5]}, "messages[0]"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"n": True}, "n"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "include_usage"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].conte"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"seed": 1.5}, "seed"),
        ({"level": 3}, "level"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0]"),
        ({"temperature": 10**400}, "temperature"),
        ({"deadline_tbt_s": float("nan")}, "deadline_tbt_s"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat_request({**CHAT, **change}, default=DEFAULT)
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(param)


def test_a_parameter_out_of_range_is_a_bad_request() -> None:
    with pytest.raises(ApiError, match="temperature"):
        chat_request({**CHAT, "temperature": -1}, default=DEFAULT)
    with pytest.raises(ApiError, match="between 0 and 20"):
        completions_request({"model": "m", "prompt": "x", "logprobs": 21}, default=DEFAULT)
    with pytest.raises(ApiError, match="use n"):
        completions_request({"model": "m", "prompt": "x", "best_of": 2}, default=DEFAULT)
    with pytest.raises(ApiError, match="at most 128"):
        completions_request({"model": "m", "prompt": ["x"] * 17, "n": 8}, default=DEFAULT)


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InputError("the prompt has 9 tokens"), 400, None),
        (BusyError("full", retry_after_s=2.2), 429, "3"),
        (RefusedError("another model"), 502, None),
        (LostError("gone"), 503, "1"),
        (SessionError("ours"), 500, None),
    ],
)
def test_every_error_of_ours_has_a_status(
    error: Exception, status: int, retry_after: str | None
) -> None:
    known = api_error(error)
    assert (known.status, known.headers.get("Retry-After")) == (status, retry_after)
    assert set(known.body["error"]) == {"message", "type", "param", "code"}


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": [{"role": "user", "content": f"a{HALF}"}]}, r"messages\[0\].content: char"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}, "half of"),
        ({"messages": [{"role": HALF, "content": "a"}]}, r"messages\[0\].role: character 0"),
        ({HALF: 1}, "a name in the body: character 0"),
        ({"metadata": {HALF: "a"}}, "a name in metadata: character 0"),
        ({"stop": ["a", HALF]}, r"stop\[1\]: character 0"),
        ({"level": HALF}, "level: character 0"),
        ({"deadline_tbt_s": 0}, "must be above 0"),
        ({"deadline_tbt_s": 1e11}, "at most 86400"),
        ({"temperature": 1e-308}, "temperature is 1e-308"),
        ({"top_p": 1e-50}, "top-p is 1e-50"),
        ({"repetition_penalty": 1e-300}, "repetition penalty is 1e-300"),
        ({"top_k": 10**20}, "top-k"),
        ({"max_tokens": 10**20}, "max new tokens"),
        ({"temperature": float("nan")}, "temperature is out of range"),
        ({"stop": ["a" * 2000]}, "at most 1000"),
    ],
)
def test_values_that_would_break_later_are_a_400(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ApiError, match=reason) as caught:
        chat_request({**CHAT, **change}, default=DEFAULT)
    assert caught.value.status == 400
    str(caught.value.body).encode()


def test_several_prompts_and_choices_have_seeds_of_their_own() -> None:
    asked = completions_request(
        {"model": "m", "prompt": ["a", [3, 4]], "n": 2, "seed": 2**64 - 1, "logprobs": 4},
        default=DEFAULT,
    )
    assert asked.prompts == ("a", [3, 4])
    assert [asked.choice(index).sampling.seed for index in (0, 1)] == [2**64 - 1, 0]
    assert asked.completion.sampling.top_logprobs == 4
    assert asked.completion.sampling.prompt_logprobs is None


def test_echo_asks_for_the_prompts_log_probabilities() -> None:
    asked = completions_request(
        {"model": "m", "prompt": "a", "echo": True, "logprobs": 1}, default=DEFAULT
    )
    assert asked.echo
    assert asked.completion.sampling.prompt_logprobs == 1


def test_a_forced_tool_is_a_grammar_of_that_tool_alone() -> None:
    other = {"type": "function", "function": {"name": "g"}}
    for choice, names in (
        ("required", {"f", "g"}),
        ({"type": "function", "function": {"name": "g"}}, {"g"}),
    ):
        asked = chat_request(
            {**CHAT, "tools": [TOOL, other], "tool_choice": choice}, default=DEFAULT
        )
        assert asked.tools is not None
        assert asked.tools.names == names
        grammar = asked.completion.sampling.grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
        assert {f'"const": "{name}"' in grammar.text for name in names} == {True}
    free = chat_request({**CHAT, "tools": [TOOL]}, default=DEFAULT)
    assert free.completion.sampling.grammar is None
    assert (
        chat_request({**CHAT, "tools": [TOOL], "tool_choice": "none"}, default=DEFAULT).tools
        is None
    )
