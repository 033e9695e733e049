"""A jinja2 sandbox with a budget: a template that never ends, or fills the memory, is stopped.

A model's template is somebody else's program. jinja2's sandbox keeps it from the process's objects,
but not from looping for ever. Rendering in a child process would bound it too, but costs a second
interpreter's start and memory for every request. So the work is counted here, in the thread that
renders. Everything that takes time or makes a value is charged to a `RenderBudget`: rounds of
loops, calls, filters, operators, literals and output. A charge that is too high, or comes too late,
raises `OverBudgetError`. What could make a huge value in one step is priced before it runs.

`bounded` adds the charges to a parsed template. `BoundedEnvironment` renders it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final

import jinja2.nodes
import jinja2.sandbox
from jinja2.visitor import NodeTransformer

MAX_SECONDS: Final = 5.0
ITEM_UNITS: Final = 8  # of an item of a container, which takes as long as so many characters
MAX_COUNT: Final = 1000  # a width, an indent, a number of parts
MAX_INT_BITS: Final = 4096
MAX_SLOW_CHARS: Final = 100_000  # of a text that a slow filter takes

# What can make far more than it takes, and what takes more than linear time.
_AMPLIFYING_FILTERS: Final = frozenset(
    {
        "batch",
        "center",
        "format",
        "indent",
        "join",
        "replace",
        "round",
        "slice",
        "sum",
        "tojson",
        "truncate",
        "wordwrap",
    }
)
_AMPLIFYING_METHODS: Final = frozenset(
    {
        "center",
        "expandtabs",
        "format",
        "format_map",
        "join",
        "ljust",
        "lstrip",
        "replace",
        "rjust",
        "rstrip",
        "strip",
        "translate",
        "zfill",
    }
)
_COUNTS: Final = _AMPLIFYING_FILTERS | _AMPLIFYING_METHODS - {"replace"}  # whose numbers are small
_SLOW: Final = frozenset(
    {
        "pprint",
        "striptags",
        "title",
        "unescape",
        "urlize",
        "wordwrap",
        "xmlattr",
    }
)
_FORMATS: Final = frozenset({"format", "format_map"})
_WIDTH: Final = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # a wide field, or one whose width is a value
_CONTAINERS: Final = (list, tuple, dict, set, frozenset, KeysView, ItemsView, ValuesView)


class OverBudgetError(Exception):
    """The template does more than any conversation needs."""


class RenderBudget:
    """What one rendering may still do. One unit: a step, or a character that is made."""

    def __init__(self, units: int, *, seconds: float | None = None) -> None:
        self._left = units
        self._seconds = MAX_SECONDS if seconds is None else seconds
        self._ends_s = time.monotonic() + self._seconds

    def spend(self, units: int) -> None:
        """Charge `units`. Raises OverBudgetError when they are not there, or time is up."""
        self._left -= units
        if self._left < 0:
            raise OverBudgetError("it makes more text than any conversation needs")
        if time.monotonic() > self._ends_s:
            raise OverBudgetError(f"it runs for more than {self._seconds:g} s")

    def price(self, units: int) -> None:
        """Raise OverBudgetError when `units` could not be charged, before anything is made."""
        if units > self._left:
            raise OverBudgetError("it makes more text than any conversation needs")

    def weight(self, value: Any) -> int:
        """Characters and items of a value at every depth, as many as writing it would visit."""
        if isinstance(value, str | bytes):
            return 1 + len(value)
        if isinstance(value, range):
            return 1 + len(value)
        if not isinstance(value, _CONTAINERS):
            return 1
        total, waiting = 1, [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str | bytes):
                total += len(item)
            elif isinstance(item, ItemsView | dict):
                pairs = item.items() if isinstance(item, dict) else item
                total += 2 * ITEM_UNITS * len(item)
                waiting.extend(part for pair in pairs for part in pair)
            elif isinstance(item, _CONTAINERS):
                total += ITEM_UNITS * len(item)
                waiting.extend(item)
            if total > self._left:
                raise OverBudgetError("it makes more text than any conversation needs")
        return total


_BUDGET: Final[ContextVar[RenderBudget | None]] = ContextVar("_BUDGET", default=None)


def with_budget(budget: RenderBudget, render: Callable[[], str]) -> str:
    """What `render` returns, charged to `budget` in this thread. Raises OverBudgetError."""
    token = _BUDGET.set(budget)
    try:
        return render()
    finally:
        _BUDGET.reset(token)


def _budget() -> RenderBudget:
    budget = _BUDGET.get()
    if budget is None:
        raise OverBudgetError("nothing is rendered now")
    return budget


@jinja2.pass_context  # which also keeps jinja2 from computing constants while it parses
def _charged_output(_: jinja2.runtime.Context, value: Any) -> Any:
    budget = _budget()
    budget.spend(budget.weight(value))
    return value


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox, whose operators, calls and filters are charged."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        """options: of jinja2's environment."""
        super().__init__(optimized=False, finalize=_charged_output, **options)
        del self.globals["lipsum"]  # random text, of any length

    def guard_filters(self) -> None:
        """Charge all filters that are there now. Call it once, when the last one is added."""
        for name, function in list(self.filters.items()):
            self.filters[name] = _guarded(name, function)

    def tick(self, units: int) -> bool:
        """One more round of a loop or start of a macro, which can write so many characters."""
        _budget().spend(1 + units)
        return True

    def charged(self, value: Any) -> Any:
        """The value, charged by its weight."""
        budget = _budget()
        budget.spend(budget.weight(value))
        return value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """One call, priced before it runs and charged after it; see jinja2's sandbox."""
        if __obj in (__self.tick, __self.charged):
            return __obj(*args)
        name = getattr(__obj, "__name__", "")
        # The sandbox gives `str.format` as a function that wraps the method.
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str) and name in _AMPLIFYING_METHODS | _SLOW:
            args = tuple(_listed(arg) for arg in args)
            _check_cost(name, owner, (*args, *kwargs.values()))
        __self.tick(0)
        return __self.charged(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """One operator, priced before it runs and charged after it; see jinja2's sandbox."""
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            bits = bits + right.bit_length() if operator == "*" else bits * max(right, 0)
            if bits > MAX_INT_BITS:
                raise OverBudgetError("it computes with huge numbers")
        elif operator == "*":
            pair = (left, right) if isinstance(right, int) else (right, left)
            times = pair[1] if isinstance(pair[1], int) else 1
            _budget().price(_budget().weight(pair[0]) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            _check_cost("format", left, (right,))
        return self.charged(super().call_binop(context, operator, left, right))


class _Charges(NodeTransformer):
    """Puts the charges into a syntax tree."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802
        units = _static_chars(node)
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.body.insert(0, jinja2.nodes.ExprStmt(_call("tick", units), lineno=node.lineno))
        if node.test is not None:
            node.test = jinja2.nodes.And(_call("tick", 0), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: Any) -> jinja2.nodes.Node:  # noqa: N802
        units = _static_chars(node)
        node = self.generic_visit(node)
        node.body.insert(0, jinja2.nodes.ExprStmt(_call("tick", units), lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_CallBlock = visit_Macro  # noqa: N815

    def _wrapped(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _call("charged", node)

    visit_List = visit_Dict = visit_Concat = visit_Compare = _wrapped  # noqa: N815

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> jinja2.nodes.Node:  # noqa: N802
        return self._wrapped(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> jinja2.nodes.Node:  # noqa: N802
        is_slice = isinstance(node.arg, jinja2.nodes.Slice)
        return self._wrapped(node) if is_slice else self.generic_visit(node)


def bounded(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """The syntax tree with its charges put in."""
    found: jinja2.nodes.Template = _Charges().visit(tree)
    return found


def _call(name: str, argument: Any) -> jinja2.nodes.Call:
    line = getattr(argument, "lineno", 1)
    given = argument if isinstance(argument, jinja2.nodes.Expr) else jinja2.nodes.Const(argument)
    function = jinja2.nodes.EnvironmentAttribute(name)
    return jinja2.nodes.Call(function, [given], [], None, None, lineno=line)


def _static_chars(node: jinja2.nodes.Node) -> int:
    """Characters that the template itself writes in one round of this node."""
    return sum(len(part.data) for part in node.find_all(jinja2.nodes.TemplateData))


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, priced before it runs and charged after it."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # jinja2's own argument

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        budget = _budget()
        budget.spend(1)
        own, (value, *others) = args[:first], args[first:]
        if name in _AMPLIFYING_FILTERS | _SLOW:
            value = _listed(value)
            _check_cost(name, value, (*others, *kwargs.values()))
        result = function(*own, value, *others, **kwargs)
        budget.spend(budget.weight(result))
        return result

    return run


def _listed(value: Any) -> Any:
    """The items of a generator as a list, each charged; any other value as it is."""
    if not isinstance(value, Iterator):
        return value
    items = []
    for item in value:
        _budget().spend(_budget().weight(item))
        items.append(item)
    return items


def _check_cost(name: str, value: Any, others: tuple[Any, ...]) -> None:
    """OverBudgetError where what `name` makes of these could be beyond the budget."""
    budget = _budget()
    factor = 1
    for other in others:
        if isinstance(other, int):
            if name in _COUNTS and abs(other) > MAX_COUNT:
                raise OverBudgetError(f"{name} with {str(other)[:20]}")
            factor += abs(other) if name != "replace" else 0
        else:
            factor += budget.weight(other)
    if name == "sum" and any(not isinstance(other, int | float) for other in others[1:]):
        raise OverBudgetError("sum of what is no number")
    if name in _SLOW and budget.weight(value) > MAX_SLOW_CHARS:
        raise OverBudgetError(f"{name} of a long text")
    if name in _FORMATS and isinstance(value, str):
        if _WIDTH.search(value):
            raise OverBudgetError("a format with a very wide field")
        factor *= MAX_COUNT if re.search(r"\d\d", value) else 1
    budget.price(budget.weight(value) * factor)
