"""How a request wants its tokens chosen: sampling, penalties, biases, and the answer's format."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

from decoding.grammar import Grammar
from decoding.params import MAX_BIASED_TOKENS, MAX_TOP_LOGPROBS, SamplingParams
from edge.api.errors import ApiError, shown_value
from edge.api.fields import (
    check_known,
    count_field,
    flag_field,
    integer_field,
    real_field,
)

SAMPLING_FIELDS: Final = frozenset(
    {
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "seed",
        "stop",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
    }
)
SCHEMA_FIELDS: Final = frozenset({"name", "description", "schema", "strict"})
MAX_ID_DIGITS: Final = 10


def sampling_of(
    body: Mapping[str, Any],
    *,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    grammar: Grammar | None = None,
) -> SamplingParams:
    """OpenAI's defaults: temperature 1, and another seed each time unless one is given.

    logprobs: None for none; otherwise how many of the most likely tokens come beside each token.
    Raises ApiError, and ValueError for a parameter out of range.
    """
    seed = integer_field(body, "seed")
    return SamplingParams(
        temperature=real_field(body, "temperature", 1.0),
        top_p=real_field(body, "top_p", 1.0),
        top_k=integer_field(body, "top_k") or 0,
        min_p=real_field(body, "min_p", 0.0),
        repetition_penalty=real_field(body, "repetition_penalty", 1.0),
        seed=secrets.randbits(63) if seed is None else seed % (1 << 64),
        logprobs=logprobs is not None,
        top_logprobs=logprobs or 0,
        prompt_logprobs=prompt_logprobs,
        frequency_penalty=real_field(body, "frequency_penalty", 0.0),
        presence_penalty=real_field(body, "presence_penalty", 0.0),
        logit_bias=_logit_bias(body.get("logit_bias")),
        grammar=grammar,
    )


def chat_logprobs(body: Mapping[str, Any]) -> int | None:
    """How many likely tokens a chat wants beside each token; None: no log-probabilities."""
    count = count_field(body, "top_logprobs", None, low=0, high=MAX_TOP_LOGPROBS)
    if flag_field(body, "logprobs"):
        return count or 0
    if count:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    return None


def response_grammar(body: Mapping[str, Any]) -> Grammar | None:
    """What `response_format` asks for: None for text. ApiError names what is wrong."""
    where = "response_format"
    given = body.get(where)
    if isinstance(given, dict) and given.get("type") == "json_schema":
        check_known(given, frozenset({"type", "json_schema"}), where)
        named = given.get("json_schema")
        if not isinstance(named, dict):
            raise ApiError(f"{where}.json_schema must be an object", param=where)
        check_known(named, SCHEMA_FIELDS, f"{where}.json_schema")
        return named_grammar(named, f"{where}.json_schema")
    return plain_grammar(given, where)


def plain_grammar(given: Any, where: str) -> Grammar | None:
    """A format without a schema: None, or an object whose type is text or json_object."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise ApiError(f"{where} must be an object", param=where)
    kind = given.get("type")
    if kind in ("text", "json_object"):
        check_known(given, frozenset({"type"}), where)
        return Grammar(kind="json_object") if kind == "json_object" else None
    raise ApiError(
        f"{where}.type is {shown_value(kind)}: must be text, json_object or json_schema",
        param=where,
    )


def named_grammar(named: Mapping[str, Any], where: str) -> Grammar:
    """The field `schema` of an object. ApiError names what is wrong."""
    if not isinstance(named.get("schema"), dict):
        raise ApiError(f"{where} needs an object `schema`", param=where)
    return schema_grammar(named["schema"], where)


def schema_grammar(schema: Mapping[str, Any], where: str) -> Grammar:
    """A JSON schema as a grammar. ApiError when it is too long."""
    try:
        return Grammar(kind="json_schema", text=json.dumps(schema))
    except ValueError as error:
        raise ApiError(f"{where}: {error}", param=where) from error


def _logit_bias(value: Any) -> dict[int, float]:
    """By token id. JSON has the ids as texts."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError("logit_bias must be an object of token ids", param="logit_bias")
    if len(value) > MAX_BIASED_TOKENS:
        raise ApiError(f"logit_bias: at most {MAX_BIASED_TOKENS} tokens", param="logit_bias")
    biases: dict[int, float] = {}
    for name in value:
        if not (name.isascii() and name.isdecimal() and len(name) <= MAX_ID_DIGITS):
            raise ApiError(f"logit_bias: {shown_value(name)} is no token id", param="logit_bias")
        if int(name) in biases:
            raise ApiError(f"logit_bias: token {int(name)} is there twice", param="logit_bias")
        biases[int(name)] = real_field(value, name, 0.0)
    return biases
