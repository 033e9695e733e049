"""A grammar is read in a process of its own first: some texts end the process that reads them.

A chain of a few thousand rules is recursion that overflows the stack of llguidance, and a counted
repetition may become a gigabyte of text. Neither raises an error. So a grammar is tried in a child
with little time and memory; only what the child has read is read here. A text that passed once
is not tried again.
"""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final, TypeVar

from decoding.errors import GrammarError, GrammarLibraryError
from decoding.grammar import Grammar
from decoding.matcher import GrammarMatcher, byte_tokenizer

ResultT = TypeVar("ResultT")

# Of every thread that reads or asks a grammar. The child has less: what it can read, can be read
# here.
STACK_BYTES: Final = 64 << 20
CHILD_STACK_BYTES: Final = 48 << 20
TRIAL_CPU_S: Final = 3
TRIAL_TIMEOUT_S: Final = 20.0  # by the clock, on a busy machine
TRIAL_MEMORY_BYTES: Final = 1 << 30
REMEMBERED: Final = 256
_REFUSED: Final = 3  # the child's exit status; what it prints says why
_CHILD: Final = (
    "import json, sys; asked = json.load(sys.stdin); sys.path[:] = asked['path']; "
    "from decoding.grammar_trial import child; sys.exit(child(asked['grammar']))"
)


@functools.lru_cache(maxsize=REMEMBERED)
def try_grammar(grammar: Grammar) -> None:
    """Raise GrammarError for a grammar that a child process could not read in its limits."""
    asked = json.dumps({"path": sys.path, "grammar": asdict(grammar)})
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=asked.encode(),
            capture_output=True,
            timeout=TRIAL_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GrammarError(f"reading the {grammar.kind} took too long: make it simpler") from None
    except OSError as error:
        raise GrammarLibraryError(f"no process to read a grammar in ({error})") from error
    if done.returncode == _REFUSED:
        raise GrammarError(done.stdout.decode("utf-8", "replace"))
    if done.returncode != 0:
        raise GrammarError(f"the {grammar.kind} is too large or too deep: make it simpler")


def child(fields: dict[str, Any]) -> int:
    """What runs in the child: read the grammar within limits. Returns its exit status."""
    resource.setrlimit(resource.RLIMIT_CPU, (TRIAL_CPU_S, TRIAL_CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (TRIAL_MEMORY_BYTES, TRIAL_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        tokenizer = byte_tokenizer()
        ends = tokenizer.tokens.eos_tokens
        grammar = Grammar(**fields)
        with_stack(1, CHILD_STACK_BYTES).submit(
            lambda: GrammarMatcher(grammar, tokenizer, end_token_ids=ends).masks([])
        ).result()
    except GrammarError as error:
        sys.stdout.buffer.write(str(error).encode())
        return _REFUSED
    return 0


def with_stack(num_threads: int, stack_bytes: int = STACK_BYTES) -> ThreadPoolExecutor:
    """Threads for grammars, with a large stack: reading them is recursive."""
    pool = ThreadPoolExecutor(num_threads, "grammar")
    started = threading.Barrier(num_threads + 1)
    before = threading.stack_size(stack_bytes)
    try:
        for _ in range(num_threads):  # each starts a thread, because none is free before all wait
            pool.submit(started.wait)
    finally:
        threading.stack_size(before)
    started.wait()
    return pool


def submitted(
    pool: ThreadPoolExecutor, call: Callable[..., ResultT], *args: Any
) -> Future[ResultT]:
    """`call` in one of these threads; whatever it raises arrives as a GrammarError."""
    return pool.submit(_guarded, call, *args)


def _guarded(call: Callable[..., ResultT], *args: Any) -> ResultT:
    """A panic of the library is no Exception, and would end the thread that waits for it."""
    try:
        return call(*args)
    except GrammarError:
        raise
    except BaseException as error:
        raise GrammarError(f"the grammar library failed ({type(error).__name__})") from error
