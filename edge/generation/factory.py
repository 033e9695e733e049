"""The generations of one device: from a request to a source of tokens, with or without a cloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from codec.ladder import Ladder
from edge.device.front import FrontEngine
from edge.draft.factory import DrafterFactory
from edge.errors import InputError
from edge.generation.completion import CompletionRequest
from edge.generation.context import ShiftingGeneration
from edge.generation.device_model import DeviceModel
from edge.generation.evicting import EvictingGeneration
from edge.generation.fallback import FallbackGeneration
from edge.generation.kv_shipment import LeftBehind
from edge.generation.leaving import check_leaving, check_outgrowing, context_capacity, leaving_of
from edge.generation.link_notice import OnLink, unheard
from edge.generation.local import LocalGeneration
from edge.generation.local_grammars import LocalGrammars
from edge.generation.loop import RemoteGeneration
from edge.generation.moving import MovingGeneration
from edge.generation.prefix_memory import MAX_BYTES
from edge.generation.remote_parts import RemoteParts
from edge.generation.split_watch import FixedSplit, SplitWish
from edge.generation.tables_choice import ChosenTables, TablesChoice, TablesChooser
from edge.generation.token_source import FrontSegment, TokenSource
from edge.net.transport import Transport
from optimizer.artifacts.codec_tables import DEFAULT_TABLES
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prefill import PLANNED
from optimizer.policy.kv.registry import kv_policy
from optimizer.policy.retry import Clock, RetryPolicy


class GenerationFactory:
    """See the module's docstring.

    ladders: by split, for each of the plan's. transports: the servers, the first one first; empty
    when the plan is whole on the edge. chunk_tokens: the most prompt tokens a frame, or always so
    many if not `adaptive_chunks`. share_prefixes: whether the tenant's other devices may find this
    device's prompts. end_token_ids, tokenizer_path: for answers that follow a grammar. on_link:
    told of lost servers, in the generation's thread. fallback: answers when no server does.
    wish: the split to prefer where the front has segments; None: the plan's. more_ladders: those of
    further codec tables, by their name, beside the default ones of `ladders`: each prompt gets the
    cheapest (`edge.generation.tables_choice`).
    """

    def __init__(
        self,
        *,
        plan: Plan,
        ladders: Mapping[int, Ladder],
        transports: Sequence[Transport],
        drafters: DrafterFactory,
        chunk_tokens: int,
        adaptive_chunks: bool,
        retry_policy: RetryPolicy,
        clock: Clock,
        share_prefixes: bool = False,
        end_token_ids: Sequence[int] = (),
        tokenizer_path: Path | None = None,
        on_link: OnLink = unheard,
        fallback: DeviceModel | None = None,
        wish: SplitWish | None = None,
        more_ladders: Mapping[str, Mapping[int, Ladder]] | None = None,
    ) -> None:
        self._plan = plan
        self._drafters = drafters
        self._chunk_tokens = chunk_tokens
        self._clock = clock
        self._fallback = fallback
        self._has_servers = bool(transports)
        self._wish = wish or FixedSplit(plan.partition.split)
        self._remote = RemoteParts(
            plan=plan,
            ladders=ladders,
            transports=transports,
            drafters=drafters,
            chunk_tokens=chunk_tokens,
            adaptive_chunks=adaptive_chunks,
            retry_policy=retry_policy,
            clock=clock,
            share_prefixes=share_prefixes,
            end_token_ids=end_token_ids,
            on_link=on_link,
            prefix_bytes=MAX_BYTES // (1 + len(more_ladders or {})),
        )
        self._remotes = {DEFAULT_TABLES: self._remote} | {
            name: self._remote.with_ladders(further, share_prefixes=share_prefixes)
            for name, further in (more_ladders or {}).items()
        }
        self._chooser = TablesChooser(
            {DEFAULT_TABLES: ladders, **(more_ladders or {})}, num_rows=chunk_tokens
        )
        self._grammars = LocalGrammars(
            tokenizer_path,
            vocab_size=plan.model.geometry.vocab_size,
            end_token_ids=tuple(end_token_ids),
        )

    @property
    def drafter_names(self) -> tuple[str, ...]:
        """The drafters of this device, with `auto` and `off`."""
        return self._drafters.names

    def check(self, request: CompletionRequest) -> None:
        """InputError for a level, a drafter, a prefill place, a token or a grammar that is not to
        be had here."""
        self._first_levels(request, self._plan.partition.split)
        self._drafters.check(request.draft)
        self._check_cloud_layers(request)
        check_leaving(request, self._plan)
        vocab_size = self._plan.model.geometry.vocab_size
        for token_id in request.sampling.logit_bias:
            if token_id >= vocab_size:
                raise InputError(
                    f"logit bias of token {token_id}: the model's tokens end at {vocab_size - 1}"
                )
        if self._plan.edge_is_whole:
            self._grammars.matcher(request.sampling.grammar)

    def _check_cloud_layers(self, request: CompletionRequest) -> None:
        """InputError for what needs a server with every layer where there is none."""
        wanted = "" if request.prefill in (PLANNED, "edge") else f"prefill {request.prefill}"
        if kv_policy(request.context).hands_over:
            wanted = f"context {request.context}"
        if request.prefer == "cloud":
            wanted = "prefer cloud"
        if request.prefer == "edge" and self._fallback is None and not self._plan.edge_is_whole:
            raise InputError(
                "prefer edge: this device has no model of its own; give its bundle (--fallback)"
            )
        if request.split is not None and request.split != self._plan.partition.split:
            wanted = f"split {request.split}"
            if request.split and request.split not in self._plan.splits:
                raise InputError(
                    f"{wanted}: this front runs 0, {', '.join(map(str, self._plan.splits))}"
                )
        if wanted and self._plan.edge_is_whole:
            raise InputError(f"{wanted}: this plan has no server, the device holds every layer")
        if wanted and self._plan.back_start > 0:
            raise InputError(
                f"{wanted}: the server holds only the layers from {self._plan.back_start} on; "
                "build with --back-from 0"
            )

    def generation(
        self,
        front: FrontEngine,
        request: CompletionRequest,
        *,
        num_prompt_tokens: int,
        max_new_tokens: int,
    ) -> TokenSource:
        """The source of one answer's tokens. The device's own model answers where it is asked
        for, and goes on where it may when the server is lost.
        """
        if self._fallback is None or self._plan.edge_is_whole:
            return self._with_tables(front, request, num_prompt_tokens, max_new_tokens)
        remote = None
        if request.prefer != "edge" and self._has_servers:
            remote = self._with_tables(front, request, num_prompt_tokens, max_new_tokens)
        return FallbackGeneration(
            remote=remote,
            on_device=partial(self._fallback.rest, request, num_prompt_tokens),
            max_new_tokens=max_new_tokens,
        )

    def _first_levels(self, request: CompletionRequest, split: int) -> dict[str, str]:
        """The level that an answer begins at at `split`, by the tables that have it everywhere.

        InputError where no tables do.
        """
        found: dict[str, str] = {}
        refusal: InputError | None = None
        for name, remote in self._remotes.items():
            try:
                levels = {at: remote.levels(request.level, at) for at in self._plan.splits}
            except InputError as error:
                refusal = refusal or error
            else:
                found[name] = levels[split][0]
        if refusal is not None and not found:
            raise refusal
        return found

    def _with_tables(
        self,
        front: FrontEngine,
        request: CompletionRequest,
        num_prompt_tokens: int,
        max_new_tokens: int,
    ) -> TokenSource:
        """As planned, with the codec tables that suit the prompt where there are several."""
        split = self._wish.wished() if request.split is None else request.split
        if request.prefer == "cloud" or split not in self._plan.splits or self._plan.edge_is_whole:
            return self._planned(self._remote, front, request, num_prompt_tokens, max_new_tokens)
        levels = self._first_levels(request, split)
        if list(levels) == [DEFAULT_TABLES]:
            return self._planned(self._remote, front, request, num_prompt_tokens, max_new_tokens)

        def choose(prompt_ids: Sequence[int]) -> tuple[TablesChoice, FrontSegment]:
            front.move_to(split)  # an answer before this one may have ended elsewhere
            return self._chooser.choose(front, prompt_ids, split=split, levels=levels)

        def part_of(name: str, computed: FrontSegment) -> TokenSource:
            return self._planned(
                self._remotes[name], front, request, num_prompt_tokens, max_new_tokens, computed
            )

        return ChosenTables(
            choose=choose,
            part_of=part_of,
            chooser=self._chooser,
            default=DEFAULT_TABLES if DEFAULT_TABLES in levels else None,
        )

    def _planned(
        self,
        remote: RemoteParts,
        front: FrontEngine,
        request: CompletionRequest,
        num_prompt_tokens: int,
        max_new_tokens: int,
        computed: FrontSegment | None = None,
    ) -> TokenSource:
        """As planned, with the tables of `remote`. computed: the front, whose first rows may be
        there already. The split moves where the front has segments, and when the answer may outgrow
        the plan it shifts or the server takes over.

        Every part after a shift gets a seed of its own: its positions start anew, and the
        sampler's random numbers depend on seed and position.
        """
        total = num_prompt_tokens + max_new_tokens
        if request.prefer == "cloud":
            return remote.at(0, front, request, max_tokens=total, num_prompt=num_prompt_tokens)
        policy, capacity = kv_policy(request.context), context_capacity(request, self._plan)
        outgrows = total > capacity and (policy.evicts or policy.hands_over)
        if outgrows:
            check_outgrowing(request, total=total, capacity=capacity)
        elsewhere = request.split not in (None, self._plan.partition.split)
        if policy.hands_over if outgrows else elsewhere or len(self._plan.splits) > 1:
            return self._moving(remote, front, request, num_prompt_tokens, max_new_tokens)
        if outgrows and policy.in_place:
            return self._evicting(remote, front, request, num_prompt_tokens, max_new_tokens)
        if not outgrows:
            return self._part(remote, front, request, total, num_prompt_tokens, computed)

        def part(index: int, max_tokens: int, num_prompt: int) -> TokenSource:
            sampling = replace(request.sampling, seed=(request.sampling.seed + index) % (1 << 64))
            changed = replace(request, sampling=sampling)
            return self._part(remote, front, changed, max_tokens, num_prompt)

        return ShiftingGeneration(
            generation_of=part,
            front=front,
            capacity=capacity,
            policy=policy,
            max_new_tokens=max_new_tokens,
        )

    def _evicting(
        self,
        remote: RemoteParts,
        front: FrontEngine,
        request: CompletionRequest,
        num_prompt_tokens: int,
        max_new_tokens: int,
    ) -> EvictingGeneration:
        """An answer whose tokens leave both caches, and the others stay as they are."""
        split = self._plan.partition.split if request.split is None else request.split
        front.move_to(split)
        leaving = leaving_of(
            request, self._plan, front, max_positions=num_prompt_tokens + max_new_tokens
        )
        part = remote.at(
            split,
            front,
            request,
            max_tokens=leaving.room.capacity,
            num_prompt=num_prompt_tokens,
            leaving=leaving,
        )
        return EvictingGeneration(part, leaving.room, max_new_tokens=max_new_tokens)

    def _moving(
        self,
        remote: RemoteParts,
        front: FrontEngine,
        request: CompletionRequest,
        num_prompt_tokens: int,
        max_new_tokens: int,
    ) -> MovingGeneration:
        """An answer whose split may move."""

        def part_at(
            split: int, max_tokens: int, is_moved: bool, left: LeftBehind | None
        ) -> RemoteGeneration:
            return remote.at(
                split,
                front,
                request,
                max_tokens=max_tokens,
                num_prompt=num_prompt_tokens,
                is_moved=is_moved,
                left=left,
            )

        return MovingGeneration(
            part_at=part_at,
            front=front,
            capacities={split: self._plan.capacity(split) for split in (0, *self._plan.splits)},
            wish=self._wish if request.split is None else FixedSplit(request.split),
            max_new_tokens=max_new_tokens,
        )

    def _part(
        self,
        remote: RemoteParts,
        front: FrontEngine,
        request: CompletionRequest,
        max_tokens: int,
        num_prompt: int,
        computed: FrontSegment | None = None,
    ) -> TokenSource:
        """One generation of at most `max_tokens` tokens at the plan's split, or the one asked for.

        num_prompt: how many of its first tokens are no part of the answer. InputError for a grammar
        that this device cannot follow.
        """
        if self._plan.edge_is_whole:
            return LocalGeneration(
                front=front,
                sampling=request.sampling,
                chunk_tokens=self._chunk_tokens,
                clock=self._clock,
                num_prompt=num_prompt,
                matcher=self._grammars.matcher(request.sampling.grammar),
            )
        split = self._plan.partition.split if request.split is None else request.split
        if split in self._plan.splits:
            front.move_to(split)  # an answer before this one may have ended elsewhere
        return remote.at(
            split, computed or front, request, max_tokens=max_tokens, num_prompt=num_prompt
        )
