"""Grammars of sessions, compiled and asked in threads of their own, never on the model thread.

A grammar is a client's text. A child process tries it first (`decoding.grammar_trial`). Reading one
may take a tenth of a second of processor time, and its masks may too (`decoding.matcher` bounds
both). The model thread only asks for masks, runs the model meanwhile, and finishes a frame once its
masks are there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeAlias

from cloud.errors import BadOpenError, CapacityError, MismatchError
from decoding.errors import GrammarError, GrammarLibraryError
from decoding.grammar import Grammar
from decoding.grammar_trial import submitted, try_grammar, with_stack
from decoding.matcher import GrammarMatcher, GrammarTokenizer
from decoding.penalties import TokenMask
from protos.messages import Open

# The masks after an answer, and after each draft that the grammar allows. Fails with GrammarError.
Constrain: TypeAlias = Callable[[Sequence[int], Sequence[int]], Future[list[TokenMask]]]

TOKENIZER_NAME: Final = "cloud/tokenizer.json"
THREADS: Final = 2
MAX_COMPILING: Final = 8
COMPILE_TIMEOUT_S: Final = 30.0


class Grammars:
    """See the module's docstring. Lives on the event loop's thread.

    tokenizer_path: None where the bundle has no tokenizer for the server. eos_token_id: the
    model's; None: unknown. The tokenizer is made now: it holds Python's lock for up to a second,
    which would stop the steps of a server that works already.
    """

    def __init__(
        self, tokenizer_path: Path | None, *, vocab_size: int, eos_token_id: int | None = None
    ) -> None:
        self._tokenizer: GrammarTokenizer | None = None
        self._why_not = (
            "this server's bundle has no tokenizer, which a grammar needs: build the bundle again "
            "with this version, or ask without a grammar"
        )
        if tokenizer_path is not None:
            try:
                self._tokenizer = GrammarTokenizer(tokenizer_path, vocab_size, eos_token_id)
            except GrammarLibraryError as error:
                self._why_not = f"this server takes no grammars: {error}"
        self._threads: ThreadPoolExecutor | None = None
        self._num_compiling = 0

    async def constrain(self, request: Open) -> Constrain | None:
        """What gives the masks of this session; None where it has no grammar.

        Raises BadOpenError for a grammar that cannot be had, MismatchError where this server cannot
        have any, and CapacityError where too many are being read.
        """
        grammar = request.sampling.grammar
        if grammar is None:
            return None
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise MismatchError(self._why_not)
        if self._num_compiling >= MAX_COMPILING:
            raise CapacityError(f"{MAX_COMPILING} grammars are being read already")
        threads = self._threads = self._threads or with_stack(THREADS)
        self._num_compiling += 1
        try:
            # In a thread of its own: a trial must not hold up the masks of others.
            await asyncio.wait_for(asyncio.to_thread(try_grammar, grammar), COMPILE_TIMEOUT_S)
            reading = submitted(threads, _read, grammar, tokenizer, request.end_token_ids)
            matcher = await asyncio.wait_for(asyncio.wrap_future(reading), COMPILE_TIMEOUT_S)
        except GrammarLibraryError as error:
            raise MismatchError(f"this server takes no grammars: {error}") from error
        except GrammarError as error:
            raise BadOpenError(str(error)) from error
        except asyncio.TimeoutError:
            raise CapacityError("reading the grammar took too long") from None
        finally:
            self._num_compiling -= 1

        def masks(answer: Sequence[int], drafts: Sequence[int]) -> Future[list[TokenMask]]:
            return submitted(threads, matcher.masks, answer, drafts)

        return masks


def _read(
    grammar: Grammar, tokenizer: GrammarTokenizer, end_token_ids: Sequence[int]
) -> GrammarMatcher:
    return GrammarMatcher(grammar, tokenizer, end_token_ids=end_token_ids)
