"""A split that moves during an answer: towards the cloud or back, at any token.

The part so far ends, and a session at the other split goes on behind its tokens. Towards the cloud,
the device keeps what it has cached for the layers that stay, and frees the others. The server gets
the keys and values of the others and keeps what it has of its own layers, or it gets all tokens as
ids and computes all its layers: the part decides (`optimizer.policy.move_transport`). Towards the
edge, the device computes its layers for all tokens anew while the server does the same, from ids.
Positions, seed and so the random numbers stay the same. An answer with moves is therefore that of
one run without, as far as both sides hold the same weights: with float32 and the lossless level to
the token, else within what the front's rounding changes.

The split moves for three reasons: the device's cache is full (fewer layers hold more tokens in the
same memory), somebody asked for it, or the policy (`optimizer.policy.split_moves`) did.

Source: ours. Moving cached keys and values is the paper's I_kv (arXiv:2511.04002).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Protocol, TypeAlias

from decoding.params import shown
from edge.errors import FrontError, InputError, RefusedError
from edge.generation.kv_shipment import CachedKv, LeftBehind, OpenPart
from edge.generation.parts import AnswerParts
from edge.generation.split_watch import SplitWish
from edge.generation.token_source import NewToken, OnStep, TokenSource
from edge.step_trace import StepTrace

# Makes the source of the tokens at a split: for so many tokens in all, prompt and output together;
# whether other parts came before it; what the last one left behind for it, which it has to end.
PartAt: TypeAlias = Callable[[int, int, bool, LeftBehind | None], "PartSource"]


class PartSource(TokenSource, Protocol):
    """A part of an answer (`edge.generation.loop.RemoteGeneration` is one)."""

    @property
    def left_open(self) -> OpenPart | None:
        """The session that `tokens` left open."""
        ...

    def stay_open(self) -> None:
        """Leave the session open when `tokens` is closed next."""
        ...


class MovableFront(Protocol):
    """What a move needs of the front (`edge.device.front.FrontEngine` is one)."""

    @property
    def split(self) -> int:
        """The layers that it runs: [0, split)."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens in its cache."""
        ...

    def move_to(self, split: int) -> None:
        """Run the layers [0, split) from now on."""
        ...

    def cached_from(self, split: int) -> CachedKv | None:
        """What is cached of the layers from `split` on; None: nothing that could be sent."""
        ...

    def keep(self, token_ids: Sequence[int]) -> None:
        """Forget all but the longest beginning that `token_ids` begins with too."""
        ...


class MovingGeneration(AnswerParts):
    """A token source of as many parts as the split moves, and one.

    part_at: makes them. front: moves along.
    capacities: tokens that a sequence may have at each split. wish: the split to prefer, until
    somebody asks for one. max_new_tokens: of all parts.
    """

    def __init__(
        self,
        *,
        part_at: PartAt,
        front: MovableFront,
        capacities: Mapping[int, int],
        wish: SplitWish,
        max_new_tokens: int,
    ) -> None:
        super().__init__()
        self._part_at = part_at
        self._front = front
        self._capacities = dict(sorted(capacities.items()))
        self._wish = wish
        self._asked: int | None = None
        self._max_new_tokens = max_new_tokens

    def move_to(self, split: int) -> None:
        """From the next token on run at this split, or at a lower one where that holds no more.

        Safe from any thread. InputError for a split that there is not.
        """
        known = tuple(self._capacities)
        if not isinstance(split, int) or split not in known:
            listed = ", ".join(map(str, known))
            raise InputError(f"no split {shown(split)}: choose one of {listed}")
        self._asked = split

    def tokens(self, prompt_ids: Sequence[int], on_step: OnStep) -> Generator[NewToken, None, None]:
        """Yield new tokens; raises what the parts raise (see RemoteGeneration).

        A split at which the server refuses to go on is used no more, as long as another one holds
        the tokens. InputError where they fit at no split.
        """

        def record(step: StepTrace) -> None:
            self._wish.answered(step)
            on_step(step)

        tokens = list(prompt_ids)
        end = len(tokens) + self._max_new_tokens
        wished = self._wish.wished()
        before = max((at for at in self._capacities if at <= wished), default=0)
        open_part: OpenPart | None = None
        try:
            while len(tokens) < end and not self._cancelled:
                wanted = self._next_split(len(tokens))
                left = self._left_behind(open_part, wanted, before, tokens)
                split = self._moved_front(wanted, tokens)
                if left is None and open_part is not None:
                    open_part.close()
                self.moves += split != before
                most = min(self._capacities[split], end)
                is_moved = len(tokens) > len(prompt_ids)
                part = self._begin_part(split, most, is_moved, left)
                left = None  # it holds the memory of the layers that were dropped
                begun_at = len(tokens)
                try:
                    with closing(part.tokens(tuple(tokens), record)) as source:
                        for token in islice(source, most - len(tokens)):
                            tokens.append(token.token_id)
                            yield token
                            if self._is_over(part, split, len(tokens), most=most, end=end):
                                break
                except RefusedError as error:
                    if split == before or len(tokens) > begun_at or not is_moved:
                        raise
                    self._refused(split, begun_at, error)
                    self.moves -= 1
                    self._asked = before
                else:
                    before = split
                open_part = part.left_open
        finally:
            if open_part is not None:
                open_part.close()

    def _begin_part(
        self, split: int, most: int, is_moved: bool, left: LeftBehind | None
    ) -> PartSource:
        part = self._part_at(split, most, is_moved, left)
        self.begin(part)
        return part

    def _is_over(
        self, part: PartSource, split: int, num_tokens: int, *, most: int, end: int
    ) -> bool:
        """Whether the part at `split` ends here. Where a lower one follows, it stays open."""
        if num_tokens >= end or not any(at > num_tokens for at in self._capacities.values()):
            return num_tokens >= most
        following = self._next_split(num_tokens)
        if following < split:
            part.stay_open()
        return following != split or num_tokens >= most

    def _left_behind(
        self, part: OpenPart | None, split: int, before: int, tokens: Sequence[int]
    ) -> LeftBehind | None:
        """What the part before leaves to the one at `split`. The last token has no cache yet."""
        self._front.keep(tokens)
        num_tokens = min(self._front.num_tokens, len(tokens) - 1)
        if part is None or split >= before or num_tokens < 1:
            return None
        kv = self._front.cached_from(split)
        if kv is None or kv.layers.stop != before:
            return None
        return LeftBehind(part=part, kv=kv, num_tokens=num_tokens)

    def _refused(self, split: int, num_tokens: int, error: RefusedError) -> None:
        """Use `split` no more; raises `error` where no other one holds a token more."""
        left = {at: most for at, most in self._capacities.items() if at != split}
        if not any(most > num_tokens for most in left.values()):
            raise error
        self._capacities = left
        self.detail = f"no move to split {split}: {error}"

    def _next_split(self, num_tokens: int) -> int:
        """The wished split, or the next lower one that holds one token more."""
        wished = self._wish.wished() if self._asked is None else self._asked
        holding = [at for at, most in self._capacities.items() if most > num_tokens]
        if not holding:
            raise InputError(f"the device's cache holds no more than {num_tokens} tokens")
        return max((at for at in holding if at <= wished), default=holding[0])

    def _moved_front(self, split: int, tokens: Sequence[int]) -> int:
        """Move the front to `split`; returns where it is: a segment may not be to be had.

        At split 0 it keeps its segments for the next answer, unless split 0 was wished.
        """
        wished = any(at and most > len(tokens) for at, most in self._capacities.items())
        if split or wished:
            try:
                self._front.move_to(split)
            except FrontError as error:
                split = self._asked = self._front.split
                self.detail = f"the split stayed at {split}: {error}"
        self._front.keep(tokens)
        return split
