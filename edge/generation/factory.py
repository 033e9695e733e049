"""The generations of one device: from a request to a source of tokens, with or without a cloud.

The factory holds what all generations share: the plan, the ladder, the transports, the drafters
and the memory of prompts. Each generation gets a session, a connector and a level selector of its
own.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from codec.ladder import Ladder
from edge.device.front import FrontEngine
from edge.draft.acceptance import Acceptance
from edge.draft.factory import DrafterFactory
from edge.errors import InputError
from edge.generation.chunk_sizer import ChunkSizer
from edge.generation.completion import AUTO_LEVEL, CompletionRequest
from edge.generation.connector import Connector
from edge.generation.context import ShiftingGeneration
from edge.generation.device_model import DeviceModel
from edge.generation.drafting import DraftSelector
from edge.generation.fallback import FallbackGeneration
from edge.generation.handover import HandoverGeneration
from edge.generation.level_selector import LevelSelector
from edge.generation.link_notice import OnLink, unheard
from edge.generation.local import LocalGeneration
from edge.generation.local_grammars import LocalGrammars
from edge.generation.loop import RemoteGeneration
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from edge.generation.prefix_memory import PrefixMemory
from edge.generation.token_source import TokenSource
from edge.net.transport import Transport
from hwprofiles.schema.near_names import did_you_mean
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prefill import PLANNED
from optimizer.policy.kv.registry import kv_policy
from optimizer.policy.retry import Clock, RetryPolicy
from protos.limits import MAX_END_TOKENS
from protos.messages import Open
from protos.wire import MAX_RESUME_S


class GenerationFactory:
    """See the module's docstring.

    transports: the servers, the first one first; empty when the plan is whole on the edge.
    chunk_tokens: the most prompt tokens a frame, or always so many if not `adaptive_chunks`.
    share_prefixes: whether the tenant's other devices may find this device's prompts.
    end_token_ids, tokenizer_path: for answers that follow a grammar. on_link: told of lost
    servers, in the generation's thread. fallback: answers when no server does.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        ladder: Ladder,
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
    ) -> None:
        self._plan = plan
        self._ladder = ladder
        self._transports = tuple(transports)
        self._drafters = drafters
        self._chunk_tokens = chunk_tokens
        self._adaptive_chunks = adaptive_chunks
        self._retry_policy = retry_policy
        self._clock = clock
        self._on_link = on_link
        self._fallback = fallback
        self._prefixes = PrefixMemory(share=share_prefixes)
        self._prefill = PrefillPlanner(
            split=plan.partition.split,
            num_layers=plan.model.geometry.num_layers,
            chunk_tokens=chunk_tokens,
        )
        self._end_token_ids = tuple(end_token_ids)[:MAX_END_TOKENS]
        self._grammars = LocalGrammars(
            tokenizer_path,
            vocab_size=plan.model.geometry.vocab_size,
            end_token_ids=self._end_token_ids,
        )

    @property
    def drafter_names(self) -> tuple[str, ...]:
        """The drafters of this device, with `auto` and `off`."""
        return self._drafters.names

    def check(self, request: CompletionRequest) -> None:
        """InputError for a level, a drafter, a prefill place, a token or a grammar that is not to
        be had here."""
        self.levels(request.level)
        self._drafters.check(request.draft)
        self._check_cloud_layers(request)
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
        if wanted and self._plan.edge_is_whole:
            raise InputError(f"{wanted}: this plan has no server, the device holds every layer")
        if wanted and self._plan.back_start > 0:
            raise InputError(
                f"{wanted}: the server holds only the layers from {self._plan.back_start} on; "
                "build with --back-from 0"
            )

    def levels(self, wanted: str) -> tuple[str, ...]:
        """The levels a generation may use, the first one to begin with. InputError for none."""
        names = self._ladder.names
        if wanted == AUTO_LEVEL:
            level = self._plan.level
            return names[names.index(level) :] if level in names else (level,)
        if wanted.isdecimal() and int(wanted) < len(names):
            return (names[int(wanted)],)
        if wanted not in (*names, *self._ladder.extra_names):
            raise InputError(
                f"no level {wanted!r}: this bundle has {', '.join(names)}"
                f"{did_you_mean(wanted, names)}"
            )
        return (wanted,)

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
            return self._planned(front, request, num_prompt_tokens, max_new_tokens)
        remote = None
        if request.prefer != "edge" and self._transports:
            remote = self._planned(front, request, num_prompt_tokens, max_new_tokens)
        return FallbackGeneration(
            remote=remote,
            on_device=partial(self._fallback.rest, request, num_prompt_tokens),
            max_new_tokens=max_new_tokens,
        )

    def _planned(
        self,
        front: FrontEngine,
        request: CompletionRequest,
        num_prompt_tokens: int,
        max_new_tokens: int,
    ) -> TokenSource:
        """As planned. It shifts, or the server takes over, when the answer may outgrow the plan.

        Every part after a shift gets a seed of its own: its positions start anew, and the
        sampler's random numbers depend on seed and position.
        """
        total = num_prompt_tokens + max_new_tokens
        if request.prefer == "cloud":
            return self._in_cloud(front, request, total, num_prompt_tokens)
        policy = kv_policy(request.context)
        if total <= self._plan.max_tokens or not (policy.evicts or policy.hands_over):
            return self.part(front, request, total, num_prompt_tokens)
        needs_all = request.sampling.prompt_logprobs is not None
        if policy.evicts:
            needs_all = needs_all or request.sampling.grammar is not None
        if needs_all:
            raise InputError(
                f"prompt and answer of {total} tokens may outgrow the plan's "
                f"{self._plan.max_tokens}, and a grammar and the prompt's log-probabilities need "
                "all of them: ask for fewer new tokens"
            )
        if policy.hands_over:
            return HandoverGeneration(
                on_device=lambda most: self.part(front, request, most, num_prompt_tokens),
                in_cloud=lambda most: self._in_cloud(front, request, most, num_prompt_tokens),
                capacity=self._plan.max_tokens,
                max_new_tokens=max_new_tokens,
            )

        def part(index: int, max_tokens: int, num_prompt: int) -> TokenSource:
            sampling = replace(request.sampling, seed=(request.sampling.seed + index) % (1 << 64))
            return self.part(front, replace(request, sampling=sampling), max_tokens, num_prompt)

        return ShiftingGeneration(
            generation_of=part,
            front=front,
            capacity=self._plan.max_tokens,
            policy=policy,
            max_new_tokens=max_new_tokens,
        )

    def part(
        self, front: FrontEngine, request: CompletionRequest, max_tokens: int, num_prompt: int
    ) -> TokenSource:
        """One generation of at most `max_tokens` tokens, prompt and output together.

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
        prefill = self._prefill_choice(request.prefill)
        selector = LevelSelector(
            ladder=self._ladder,
            levels=self.levels(request.level),
            deadline_s=request.deadline_tbt_s,
        )
        return RemoteGeneration(
            front=front,
            selector=selector,
            connector=Connector(
                request=self._announcement(request, max_tokens, num_prompt),
                transports=self._transports,
                retry_policy=self._retry_policy,
                clock=self._clock,
                rng=random.Random(),
                token_frames=prefill is not None,
                on_link=self._on_link,
            ),
            chunks=ChunkSizer(
                self._chunk_tokens, selector=selector, adaptive=self._adaptive_chunks
            ),
            retry_policy=self._retry_policy,
            clock=self._clock,
            drafting=self._drafting(request.draft),
            prefixes=self._prefixes,
            vocab_size=self._plan.model.geometry.vocab_size,
            prefill=prefill,
        )

    def _in_cloud(
        self, front: FrontEngine, request: CompletionRequest, max_tokens: int, num_prompt: int
    ) -> TokenSource:
        """A generation at split 0: every token goes as an id, and the front computes nothing."""
        ladder = Ladder.lossless(self._plan.model.geometry.hidden_size)
        selector = LevelSelector(
            ladder=ladder, levels=ladder.names, deadline_s=request.deadline_tbt_s
        )
        opening = replace(
            self._announcement(request, max_tokens, num_prompt),
            split=0,
            codec_tables_sha256=ladder.tables_sha256,
        )
        return RemoteGeneration(
            front=front,
            selector=selector,
            connector=Connector(
                request=opening,
                transports=self._transports,
                retry_policy=self._retry_policy,
                clock=self._clock,
                rng=random.Random(),
                token_frames=True,
                on_link=self._on_link,
            ),
            chunks=ChunkSizer(self._chunk_tokens, selector=selector),
            retry_policy=self._retry_policy,
            clock=self._clock,
            vocab_size=self._plan.model.geometry.vocab_size,
            prefill=PrefillChoice(self._prefill, "cloud", split=0),
        )

    def _prefill_choice(self, place: str) -> PrefillChoice | None:
        """None: every frame brings rows. place: a place, or PLANNED."""
        split = self._plan.partition.split
        place = self._plan.prefill if place == PLANNED else place
        if self._plan.back_start > 0 or (place not in ("cloud", "both") and split > 0):
            return None
        return PrefillChoice(self._prefill, "both" if place == "both" else "cloud", split=split)

    def _drafting(self, name: str) -> DraftSelector | None:
        acceptance = Acceptance()
        drafter = self._drafters.drafter(name, acceptance)
        if drafter is None:
            return None
        return DraftSelector(
            drafter,
            clock=self._clock.now,
            acceptance=acceptance,
            vocab_size=self._plan.model.geometry.vocab_size,
        )

    def _announcement(self, request: CompletionRequest, max_tokens: int, num_prompt: int) -> Open:
        """What the edge tells a server when it opens a session."""
        return Open(
            session_id=secrets.token_hex(16),
            model_sha256=self._plan.model.sha256,
            split=self._plan.partition.split,
            hidden_size=self._plan.model.geometry.hidden_size,
            codec_tables_sha256=self._ladder.tables_sha256,
            max_tokens=max_tokens,
            sampling=request.sampling,
            # Long enough for every attempt to come back to this server.
            resume_s=min(self._retry_policy.recover_s, MAX_RESUME_S),
            prefix_salt=self._prefixes.salt,
            prompt_tokens=num_prompt,
            end_token_ids=self._end_token_ids,
        )
