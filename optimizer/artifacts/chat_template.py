"""Chat templates: what transformers gives them, in a sandbox with limits.

A bundle stores the model's template as jinja2 source. The build parses it, and the device renders
it. A template sees the names that transformers has for it (`transformers.utils.chat_template_utils`
and `apply_chat_template`, 5.24), so that the same text comes out. Two differences: the filter
`urlize` and the function `lipsum` are missing, and work is limited (`template_limits`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils

from optimizer.artifacts.template_limits import (
    BoundedEnvironment,
    RenderBudget,
    bounded,
    with_budget,
)
from optimizer.errors import ChatTemplateError

MAX_TEMPLATE_CHARS: Final = 256 << 10
MAX_NODES: Final = 20_000
# Work for a rendering: as much as the largest templates need, and so much for each character given.
BASE_UNITS: Final = 16 << 20
UNITS_A_CHAR: Final = 32
# Names of the tokens that a template may insert. One that the model does not have is empty.
SPECIAL_TOKENS: Final = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
_REASON_CHARS: Final = 300


class ChatTemplate:
    """One parsed template. It keeps nothing from one rendering to the next."""

    def __init__(self, source: str) -> None:
        """source: jinja2 text. Raises ChatTemplateError where it cannot be parsed."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ChatTemplateError(f"longer than {MAX_TEMPLATE_CHARS} characters")
        environment = _environment()
        try:
            tree = environment.parse(source)
            if sum(1 for _ in tree.find_all(jinja2.nodes.Node)) > MAX_NODES:
                raise ChatTemplateError(f"more than {MAX_NODES} parts")
            self.literals = _literals(tree)
            self.knows_tools = any(
                node.name == "tools" for node in tree.find_all(jinja2.nodes.Name)
            )
            self._template = environment.from_string(bounded(tree))
        except ChatTemplateError:
            raise
        except Exception as error:  # Python's compiler raises its own kinds for deep nesting
            raise ChatTemplateError(f"cannot be parsed: {_reason(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        special_tokens: Mapping[str, str],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as the model was trained to read it.

        tools: JSON schemas of functions, for a template that knows them (`knows_tools`).

        special_tokens: by name. `literals` has the texts that the template itself can write, joined
        by zero characters. Raises ChatTemplateError where the template refuses or fails.
        """
        given = [_plain(message) for message in messages]
        values = {
            **dict.fromkeys(SPECIAL_TOKENS, ""),
            **special_tokens,
            "messages": given,
            "tools": [_plain(tool) for tool in tools] if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        num_chars = sum(len(str(value)) for message in given for value in message.values())
        num_chars += len(str(values["tools"] or ""))
        budget = RenderBudget(BASE_UNITS + UNITS_A_CHAR * num_chars)
        try:
            return with_budget(budget, lambda: self._template.render(values))
        except Exception as error:  # a template can raise what any Python expression can
            raise ChatTemplateError(_reason(error)) from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training; the text is its body's."""

    tags = {"generation"}  # noqa: RUF012 # as jinja2 declares it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """A block whose body is written as it is, with a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body, lineno=line)

    def _body(self, caller: Any) -> str:
        return str(caller())


class _TemplateDict:
    """`dict` without the type itself, which would lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """See dict."""
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a key
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # jinja2 writes all values, at any depth


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(text: str) -> str:
    return datetime.now().strftime(text)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: no HTML escapes, keys in their order."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    del environment.filters["urlize"]  # its patterns take quadratic time
    environment.filters["tojson"] = _tojson
    environment.guard_filters()
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _Namespace
    return environment


def _literals(tree: jinja2.nodes.Template) -> str:
    """Every text that stands in the template, so that one search cannot match across two."""
    texts = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
    values = [node.value for node in tree.find_all(jinja2.nodes.Const)]
    return "\0".join(texts + [value for value in values if isinstance(value, str)])


def _plain(value: Any) -> Any:
    """The value as plain data, without the keys of a mapping that hold None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or type(value) in (int, float, bool):
        return value
    return f"<{type(value).__name__}>"


def _reason(error: Exception) -> str:
    """What went wrong, on one line and not long."""
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}..."
