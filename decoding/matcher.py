"""A grammar at work: which tokens may come next, by llguidance, within bounds of time and memory.

A grammar comes from a client and may be built to take long. llguidance bounds each of its steps by
fuel; the limits below are far under its defaults. Beyond that we measure the processor time of each
call. A grammar that takes more ends its answer. Processor time, not the clock: a busy machine must
not end honest answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from decoding.errors import GrammarError, GrammarLibraryError
from decoding.grammar import Grammar
from decoding.penalties import TokenMask, allows

# Of llguidance: items and states that one grammar may have. It takes about 2 KB a state.
_LIMITS: Final = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}
# White space in JSON: one space after each comma and colon. Where more is allowed, a weak model
# writes white space until its tokens run out.
# Options: https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
_JSON: Final = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
# Processor time, in seconds: of one call of llguidance; and of all calls of an answer together, so
# much and so much more a call. An honest grammar takes a twentieth of that.
MAX_CALL_S: Final = 0.1
MAX_ANSWER_S: Final = 0.25
MEAN_CALL_S: Final = 0.005
_MAX_ERROR_CHARS: Final = 160
_CURE: Final = "pip install 'llguidance>=1.9'"


class GrammarTokenizer:
    """A model's tokens as text, for any number of grammars. Takes about half a second to make.

    path: a `tokenizers` JSON file; None: the tokens are single bytes. vocab_size: V of the model's
    logits. eos_token_id: one that ends a text; None: the tokenizer's own. Raises
    GrammarLibraryError where llguidance is missing or cannot read the file.
    """

    def __init__(self, path: Path | None, vocab_size: int, eos_token_id: int | None = None) -> None:
        self.vocab_size = vocab_size
        llguidance = _library()
        try:
            text = "byte" if path is None else path.read_text(encoding="utf-8")
            self.tokens: Any = llguidance.LLTokenizer(text, eos_token=eos_token_id)
        except Exception as error:  # it names no kinds
            raise GrammarLibraryError(
                f"grammars do not work with this model's tokenizer ({_short(error)})"
            ) from error


def byte_tokenizer() -> GrammarTokenizer:
    """One token a byte, and one that ends a text: enough to find out what a grammar costs."""
    tokenizer = GrammarTokenizer(None, 0)
    tokenizer.vocab_size = int(tokenizer.tokens.vocab_size)
    return tokenizer


class GrammarMatcher:
    """One answer's grammar. Not thread-safe: one call at a time. An error ends its use.

    end_token_ids: tokens that may come where the answer may end. Raises GrammarError for a grammar
    that cannot be read or is too large, and GrammarLibraryError.
    """

    def __init__(
        self,
        grammar: Grammar,
        tokenizer: GrammarTokenizer,
        *,
        end_token_ids: Sequence[int],
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._cpu_s = cpu_s
        self._spent_s = 0.0
        self._num_calls = 0
        self._vocab_size = tokenizer.vocab_size
        self._end_ids = frozenset(id_ for id_ in end_token_ids if id_ < tokenizer.vocab_size)
        self._own_ends: list[int] = list(tokenizer.tokens.eos_tokens)
        if not self._end_ids:
            raise GrammarError("a grammar needs a token that ends an answer; the model names none")
        llguidance = _library()
        try:
            source = _source(grammar, llguidance.LLMatcher)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the {grammar.kind} is not readable: {_short(error)}") from error
        limits = llguidance.LLParserLimits(**_LIMITS)
        self._matcher: Any = llguidance.LLMatcher(
            tokenizer.tokens, source, log_level=0, limits=limits
        )
        self._read: list[int] = []  # the tokens that `_matcher` has consumed
        self._check(f"the {grammar.kind}")

    def masks(self, answer: Sequence[int], drafts: Sequence[int] = ()) -> list[TokenMask]:
        """The tokens that may come after `answer`, and after each draft that the grammar allows.

        answer: all tokens of the answer so far. Returns 1 to len(drafts) + 1 masks, the last one
        after the last allowed draft; each allows at least one token of the vocabulary. Raises
        GrammarError where the answer does not match, and where this takes too long.
        """
        self._go_to(answer)
        ended = self._ended(answer)
        masks = [self._mask(ended)]
        for draft in drafts:
            if not allows(masks[-1], draft):
                break
            ended = ended or self._is_end(draft)
            if not ended:
                self._consume(draft)
            masks.append(self._mask(ended))
        return masks

    def _go_to(self, answer: Sequence[int]) -> None:
        """Bring the matcher to the end of `answer`, from wherever it is."""
        same = 0
        for ours, theirs in zip(self._read, answer, strict=False):
            if ours != theirs:
                break
            same += 1
        if same < len(self._read) and not self._matcher.rollback(len(self._read) - same):
            self._matcher.reset()
            same = 0
        del self._read[same:]
        for token_id in answer[same:]:
            if self._is_end(token_id):
                break
            self._consume(token_id)

    def _ended(self, answer: Sequence[int]) -> bool:
        """Whether the answer has ended: only a token that ends it was not read."""
        return len(self._read) < len(answer)

    def _is_end(self, token_id: int) -> bool:
        return token_id in self._end_ids and bool(self._matcher.is_accepting())

    def _consume(self, token_id: int) -> None:
        begun_s = self._cpu_s()
        if token_id >= self._vocab_size or not self._matcher.consume_token(token_id):
            why = _short(self._matcher.get_error() or "it is beyond the vocabulary")
            raise GrammarError(f"token {token_id} does not match the grammar: {why}")
        self._read.append(token_id)
        self._check_time(begun_s)

    def _mask(self, ended: bool) -> TokenMask:
        mask = np.zeros((self._vocab_size + 7) // 8, dtype=np.uint8)
        may_end = ended or self._matcher.is_accepting()
        if not ended and not self._matcher.is_stopped():
            begun_s = self._cpu_s()
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)[: len(mask)]
            self._check_time(begun_s)
            self._check("the grammar")
            mask[: len(bits)] = bits
            for token_id in range(self._vocab_size, 8 * len(mask)):
                _set_bit(mask, token_id, False)
            for token_id in self._own_ends:
                _set_bit(mask, token_id, False)
        for token_id in self._end_ids if may_end else ():
            _set_bit(mask, token_id, True)
        if not mask.any():
            self._check("the grammar")
            raise GrammarError("the grammar allows no token of this model here")
        return mask

    def _check(self, what: str) -> None:
        """Raise GrammarError where llguidance has given up."""
        if self._matcher.is_error():
            raise GrammarError(f"{what} does not work: {_short(self._matcher.get_error())}")

    def _check_time(self, begun_s: float) -> None:
        call_s = self._cpu_s() - begun_s
        self._spent_s += call_s
        self._num_calls += 1
        limit_s = MAX_ANSWER_S + MEAN_CALL_S * self._num_calls
        if call_s > MAX_CALL_S or self._spent_s > limit_s:
            raise GrammarError("the grammar takes too long: make it simpler")


def _source(grammar: Grammar, matcher: Any) -> str:
    """The grammar in llguidance's own form."""
    if grammar.kind in ("json_object", "json_schema"):
        schema = grammar.text or '{"type": "object"}'
        return str(matcher.grammar_from_json_schema(schema, overrides=_JSON))
    if grammar.kind == "regex":
        return str(matcher.grammar_from_regex(grammar.text))
    return str(matcher.grammar_from_lark(grammar.text))


def _set_bit(mask: TokenMask, token_id: int, value: bool) -> None:
    at, bit = token_id >> 3, np.uint8(1 << (token_id & 7))
    if at < len(mask):
        mask[at] = mask[at] | bit if value else mask[at] & ~bit


def _short(error: object) -> str:
    text = " ".join(str(error).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _MAX_ERROR_CHARS else f"{text[:_MAX_ERROR_CHARS]}..."


def _library() -> Any:
    """The library, loaded where a grammar needs it: nothing else pays for it."""
    try:
        import llguidance
    except ImportError as error:
        raise GrammarLibraryError(
            f"grammars need the library llguidance, which is not installed here: {_CURE}"
        ) from error
    return llguidance
