"""Templates get what transformers gives them, and none of them can hang or break the device."""

from __future__ import annotations

import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from optimizer.artifacts import template_limits
from optimizer.artifacts.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from optimizer.errors import ChatTemplateError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be brief & <b>kind</b>."},
    {"role": "user", "content": "  Où est la gare ?\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nLà-bas 🙂"},
    {"role": "user", "content": 'Say "merci"'},
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('conversation roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token }}
    {%- else %}{{- raise_exception("Only user and assistant roles are supported") }}{%- endif %}
{%- endfor %}
"""
QWEN = """{%- if tools %}{{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content + reasoning|length|string }}
        {%- if message.tool_calls %}{{- message.tool_calls | tojson(indent=2) }}{%- endif %}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if tools is not none %}{{- 'tools' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}{%- endif %}
{%- endif %}
"""
TRAINING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
ODDITIES = (
    "{{ messages | tojson }}{{ messages[0] | tojson(ensure_ascii=true, sort_keys=true) }}"
    "{{ {'b': 1, 'a': [none, true]} | tojson(indent=2, separators=(', ', ': ')) }}"
    "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    "{% set d = dict(a=1) %}{{ d.a }}{{ dict.fromkeys('ab') }}{{ '%s-%03d' % ('x', 7) }}"
    "{{ '{}:{:>4}'.format('a', 3) }}{{ messages | map(attribute='role') | join(', ') }}"
    "{% macro m(x) %}[{{ x }}|{{ caller() }}]{% endmacro %}{% call m(2) %}in{% endcall %}"
    "{% for a, b in [(1, 2), (3, 4)] if a > 1 %}{{ a * b }}{% else %}none{% endfor %}"
    "{{ messages[-1].content[::-1] ~ 1 }}{{ (messages | selectattr('role', 'equalto', 'user')"
    " | list)[-1].content | upper | replace('SAY', 'say') }}{{ documents is none }}"
    "{% filter indent(2) %}a\nb{% endfilter %}{{ none }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ '-' * 5 }}"
)


@pytest.mark.parametrize(
    "source",
    [CHATML, LLAMA_3, MISTRAL, QWEN, TRAINING, ODDITIES],
    ids=["chatml", "llama-3", "mistral", "qwen", "training", "oddities"],
)
@pytest.mark.parametrize("first", [0, 1, 3])
def test_the_text_is_that_of_transformers(source: str, first: int) -> None:
    messages = CHAT[first:]
    render: Any = render_jinja_template
    expected, _ = render([messages], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert ChatTemplate(source).render(messages, TOKENS) == expected[0]


def test_a_guarded_date_is_that_of_today() -> None:
    text = ChatTemplate(LLAMA_3).render(CHAT, TOKENS)
    assert time.strftime("%Y") in text
    assert "26 Jul 2024" not in text


def test_tokens_that_the_model_lacks_are_empty() -> None:
    template = ChatTemplate("[{{ bos_token + pad_token + unk_token + mask_token }}]")
    assert template.render(CHAT, {}) == "[]"
    assert template.render(CHAT, {"pad_token": "<pad>"}) == "[<pad>]"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('no system here') }}", "^no system here$"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% set n = namespace(__x=1) %}", "cannot hold the name"),
        ("{{ x.y }}", "'x' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ messages[0]['content']['x']['y'] }}", "has no (attribute|element)"),
        ("{% include 'x' %}", "no loader"),
        ("{{ messages | tojson(indent='x' * 9, bad=1) }}", "TypeError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% block a %}{{ self.a() }}{% endblock %}", "RecursionError"),
        ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "RecursionError"),
        ("{{ strftime_now(7) }}", "TypeError"),
        ("{{ range(10 ** 9) }}", "Range too big"),
    ],
)
def test_every_failure_is_one_clear_line(source: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=reason) as caught:
        ChatTemplate(source).render(CHAT, TOKENS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{% unknown %}",
        "{{ 1 | unknown }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ 1" + " + 1" * 5000 + " }}",
        "{% for a in [1] %}" * 60 + "{% endfor %}" * 60,
        "{{ x }}" * (MAX_TEMPLATE_CHARS // 7 + 1),
        "{{x}}" * 20_000,
    ],
)
def test_a_template_that_cannot_be_parsed_says_so(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"cannot be parsed|longer than|more than"):
        ChatTemplate(source)


def doubled(start: str, times: int) -> str:
    """Lists of lists: a few names for 2 ** times values."""
    steps = "".join(f"{{% set x{i} = [x{i - 1}, x{i - 1}] %}}" for i in range(1, times))
    return f"{{% set x0 = {start} %}}{steps}"


ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "conditions": "{% for a in range(99999) if range(99999) | list | length == 0 %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "searches": "{% set l = range(99999) | list %}{% for i in l %}{{ -1 in l }}{% endfor %}",
    "text times number": "{{ 'a' * 10 ** 9 }}",
    "list times number": "{{ [1] * 10 ** 9 }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "numbers": "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "doubled text": "{% set n = namespace(x='a') %}{% for i in range(99) %}"
    "{% set n.x = n.x + n.x %}{% endfor %}",
    "joined text": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "nested lists": doubled("['a', 'b']", 50) + "{{ x49 }}",
    "compared lists": doubled("['a', 'b']", 50) + "{{ x49 == x48 }}",
    "width of center": "{{ 'a'.center(10 ** 9) }}",
    "width of a filter": "{{ 'a' | center(1000000000) }}",
    "width of a format": "{{ '{:999999999}'.format(1) }}",
    "width as a value": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "width of %": "{{ '%999999999d' % 1 }}",
    "width of * in %": "{{ '%*d' | format(999999999, 1) }}",
    "replacement": "{% set a = 'a' * 9999 %}{{ a.replace('a', a).replace('a', a) }}",
    "separator": "{{ range(99999) | map('string') | join('x' * 9999) }}",
    "many joined": "{{ range(99999) | map('center', 999) | join }}",
    "block of text": "{% set x %}{% for i in range(99999) %}"
    + "y" * 9999
    + "{% endfor %}{% endset %}",
    "indent": "{{ range(99999) | list | tojson(indent=1000) }}",
    "digits": "{{ 1.5 | round(10 ** 7, 'ceil') }}",
    "batches": "{{ [1] | batch(10 ** 9, 1) | list }}",
    "slices": "{{ [1] | slice(10 ** 9) | list }}",
    "sum of lists": "{{ ([[1] * 999] * 9999) | sum(start=[]) | length }}",
    "strip": "{% set a = 'ab' * 99999 %}{{ a.strip('b' * 99999 ~ 'a') }}",
    "tags": "{{ ('<!--' * 99999) | striptags }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_without_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.2)
    template = ChatTemplate(source)
    started_s = time.thread_time()
    with pytest.raises(ChatTemplateError, match="OverBudgetError"):
        template.render(CHAT, TOKENS)
    assert time.thread_time() - started_s < 4.0


def test_a_long_honest_conversation_stays_within_the_budget() -> None:
    messages: list[dict[str, Any]] = [
        {"role": role, "content": f"{'words and ' * 400}{index}"}
        for index in range(250)
        for role in ("user", "assistant")
    ]
    for source in (CHATML, LLAMA_3, MISTRAL, QWEN):
        assert len(ChatTemplate(source).render(messages, TOKENS)) > 1_500_000
