"""Generations with a cloud at one of the device's splits.

A split has its own levels, its own memory of prompts and its own measurements, since rows of
another split are other rows. At split 0 every token goes as an id, and the front computes nothing.
"""

from __future__ import annotations

import copy
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from codec.kv.frame import KV_BITS
from codec.ladder import Ladder
from edge.draft.acceptance import Acceptance
from edge.draft.factory import DrafterFactory, asked_draft_ids
from edge.errors import InputError
from edge.generation.chunk_sizer import ChunkSizer
from edge.generation.completion import AUTO_LEVEL, CompletionRequest
from edge.generation.connector import Connector
from edge.generation.drafting import DraftSelector
from edge.generation.kv_shipment import KvShipment, LeftBehind
from edge.generation.leaving import Leaving
from edge.generation.level_selector import LevelSelector
from edge.generation.link_notice import OnLink
from edge.generation.loop import RemoteGeneration
from edge.generation.move_measurements import MoveMeasurements
from edge.generation.prefill_planner import PrefillChoice, PrefillPlanner
from edge.generation.prefix_memory import MAX_BYTES, PrefixMemory
from edge.generation.session_frames import RecallGrant, SessionFrames
from edge.generation.token_source import FrontSegment
from edge.net.transport import Transport
from hwprofiles.schema.near_names import did_you_mean
from optimizer.artifacts.plan import Plan
from optimizer.artifacts.prefill import PLANNED, PrefillPlace
from optimizer.policy.move_transport import MoveCosts, cheaper_way, kv_level
from optimizer.policy.retry import Clock, RetryPolicy
from protos.limits import MAX_END_TOKENS
from protos.messages import Open
from protos.wire import MAX_RESUME_S


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSetting:
    """What generations at one split share."""

    split: int
    ladder: Ladder
    prefixes: PrefixMemory
    prefill: PrefillPlanner
    grant: RecallGrant


class RemoteParts:
    """See the module's docstring. ladders: by split, the plan's among them. prefix_bytes: of frames
    of earlier prompts, at most, at all splits together."""

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
        share_prefixes: bool,
        end_token_ids: Sequence[int],
        on_link: OnLink,
        prefix_bytes: int = MAX_BYTES,
    ) -> None:
        self._plan = plan
        self._transports = tuple(transports)
        self._drafters = drafters
        self._chunk_tokens = chunk_tokens
        self._adaptive_chunks = adaptive_chunks
        self._retry_policy = retry_policy
        self._clock = clock
        self._end_token_ids = tuple(end_token_ids)[:MAX_END_TOKENS]
        self._on_link = on_link
        geometry = plan.model.geometry
        lossless = Ladder.lossless(geometry.hidden_size)
        self._measured = MoveMeasurements(num_layers=geometry.num_layers)
        self._settings = {
            split: SplitSetting(
                split=split,
                ladder=ladder,
                # All splits together remember as much as one.
                prefixes=PrefixMemory(prefix_bytes // len(ladders), share=share_prefixes),
                prefill=PrefillPlanner(
                    split=split, num_layers=geometry.num_layers, chunk_tokens=chunk_tokens
                ),
                grant=RecallGrant(),
            )
            for split, ladder in {0: lossless, **ladders}.items()
        }

    def with_ladders(self, ladders: Mapping[int, Ladder], *, share_prefixes: bool) -> RemoteParts:
        """The same with other ladders: what was measured of link and server is shared."""
        other = copy.copy(self)
        other._settings = {
            split: replace(
                here,
                ladder=ladders.get(split, here.ladder),
                prefixes=PrefixMemory(here.prefixes.max_bytes, share=share_prefixes),
                grant=RecallGrant(),
            )
            for split, here in self._settings.items()
        }
        return other

    def levels(self, wanted: str, split: int) -> tuple[str, ...]:
        """The levels that a generation may use at `split`, the first one to begin with.

        InputError for none. Where a session has moved to split 0 no row is sent, so any will do.
        """
        ladder = self._settings[split].ladder
        names = ladder.names
        if self._is_by_ids(split):
            return names
        if wanted == AUTO_LEVEL:
            level = self._plan.level
            return names[names.index(level) :] if level in names else (level,)
        if wanted.isdecimal() and int(wanted) < len(names):
            return (names[int(wanted)],)
        if wanted not in (*names, *ladder.extra_names):
            raise InputError(
                f"no level {wanted!r}: this bundle has {', '.join(names)}"
                f"{did_you_mean(wanted, names)}"
            )
        return (wanted,)

    def at(
        self,
        split: int,
        front: FrontSegment,
        request: CompletionRequest,
        *,
        max_tokens: int,
        num_prompt: int,
        is_moved: bool = False,
        left: LeftBehind | None = None,
        leaving: Leaving | None = None,
    ) -> RemoteGeneration:
        """A generation at `split` of at most `max_tokens` tokens, prompt and output together.

        num_prompt: how many of its first tokens are no part of the answer. is_moved: the answer
        began at another split, so the cloud computes its layers from token ids. left: it may get
        keys and values instead, where that is quicker. leaving: tokens leave both caches when they
        are full; None: none leaves.
        """
        here = self._settings[split]
        shipment = None if left is None else self._shipment(request, split, left)
        if is_moved:  # the prompt was scored where the answer began
            sampling = replace(request.sampling, prompt_logprobs=None)
            request = replace(request, sampling=sampling)
        prefill = None  # a prompt of ids would leave rows below the split that cannot move
        if leaving is None:
            prefill = self._prefill_choice(here, "cloud" if is_moved else request.prefill)
        announced = self._announcement(here, request, max_tokens, num_prompt)
        if leaving is not None:
            announced = leaving.announced(announced)
        selector = LevelSelector(
            ladder=here.ladder,
            levels=self.levels(request.level, split),
            deadline_s=request.deadline_tbt_s,
            frames=SessionFrames(here.ladder) if announced.recall else None,
        )
        return RemoteGeneration(
            front=front,
            selector=selector,
            connector=Connector(
                request=announced,
                transports=self._transports,
                retry_policy=self._retry_policy,
                clock=self._clock,
                rng=random.Random(),
                token_frames=prefill is not None,
                shipment=shipment,
                on_link=self._on_link,
                grant=here.grant,
            ),
            chunks=ChunkSizer(
                self._chunk_tokens, selector=selector, adaptive=self._adaptive_chunks
            ),
            retry_policy=self._retry_policy,
            clock=self._clock,
            drafting=None if self._is_by_ids(split) else self._drafting(request.draft, split),
            prefixes=None if is_moved or leaving or self._is_by_ids(split) else here.prefixes,
            vocab_size=self._plan.model.geometry.vocab_size,
            prefill=prefill,
            keeps_front=is_moved,
            shipment=shipment,
            room=None if leaving is None else leaving.room,
            observers=[self._measured.watcher(split)],
        )

    def _shipment(
        self, request: CompletionRequest, split: int, left: LeftBehind
    ) -> KvShipment | None:
        """The keys and values to send; None: the cloud computes them, so the older session ends.

        A session of a lossy level sends them at a lossy level too.
        """
        level = kv_level(self.levels(request.level, left.kv.layers.stop)[0])
        shipment = KvShipment(left, level=level, hidden_size=self._plan.model.geometry.hidden_size)
        way: str = request.move_by
        if way == "auto":
            costs = MoveCosts(
                num_tokens=left.num_tokens,
                num_elements=shipment.num_elements,
                bits=KV_BITS[level],
                round_trip_s=self._measured.round_trip_s,
                seconds_per_byte=self._measured.seconds_per_byte,
                layers_s=self._measured.layers_s,
            )
            way = cheaper_way(costs)
        if way == "kv" and left.part.address == self._transports[0].address:
            return shipment
        left.part.close()
        return None

    def _is_by_ids(self, split: int) -> bool:
        """Whether the server runs every layer, in the place of the plan's split."""
        return split == 0 != self._plan.partition.split

    def _prefill_choice(self, here: SplitSetting, place: str) -> PrefillChoice | None:
        """None: every frame brings rows. place: a place, or PLANNED."""
        place = self._plan.prefill if place == PLANNED else place
        if self._plan.back_start > 0 or (place not in ("cloud", "both") and here.split > 0):
            return None
        chosen: PrefillPlace = "both" if place == "both" else "cloud"
        return PrefillChoice(here.prefill, chosen, split=here.split)

    def _drafting(self, name: str, split: int) -> DraftSelector | None:
        acceptance = Acceptance()
        fits = split == self._plan.partition.split
        drafter = self._drafters.drafter(name, acceptance, rows_fit=fits)
        if drafter is None:
            return None
        return DraftSelector(
            drafter,
            clock=self._clock.now,
            acceptance=acceptance,
            limit=self._drafters.effort.max_drafts,
            in_flight=self._drafters.effort.sends_ahead,
            vocab_size=self._plan.model.geometry.vocab_size,
        )

    def _announcement(
        self, here: SplitSetting, request: CompletionRequest, max_tokens: int, num_prompt: int
    ) -> Open:
        """What the edge tells a server when it opens a session."""
        return Open(
            session_id=secrets.token_hex(16),
            model_sha256=self._plan.model.sha256,
            split=here.split,
            hidden_size=self._plan.model.geometry.hidden_size,
            codec_tables_sha256=here.ladder.tables_sha256,
            max_tokens=max_tokens,
            sampling=request.sampling,
            # Long enough for every attempt to come back to this server.
            resume_s=min(self._retry_policy.recover_s, MAX_RESUME_S),
            prefix_salt=here.prefixes.salt,
            prompt_tokens=num_prompt,
            end_token_ids=self._end_token_ids,
            recall=request.adapt and here.ladder.can_recall and not here.grant.is_refused,
            draft_ids=0 if self._is_by_ids(here.split) else asked_draft_ids(request.draft),
        )
