"""The device's face: open a bundle once, then ask for as many completions as you like.

from splitpoint import EdgeClient

with EdgeClient("bundle", server="127.0.0.1:50051") as client:
    print(client.complete("The capital of France is").text)
"""

from __future__ import annotations

import queue
import random
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

from codec.ladder import Ladder
from edge.device.front import FrontEngine
from edge.device.mapped_pages import return_freed_blocks
from edge.device.memory_limit import fitting_chunk, runtime_bytes
from edge.device.tokenizer import ChatMessage, ChatTokenizer
from edge.draft.factory import DraftChoice
from edge.errors import InputError
from edge.generation.completion import AUTO_LEVEL, CompletionRequest, CompletionRun
from edge.generation.connector import Connector
from edge.generation.context import ShiftingGeneration
from edge.generation.level_selector import LevelSelector
from edge.generation.local import LocalGeneration
from edge.generation.loop import RemoteGeneration, TokenSource
from edge.generation.prefix_memory import PrefixMemory
from edge.generation.report import Completion
from edge.generation.stopping import StopRule
from edge.net.grpc_transport import Credentials, GrpcTransport
from optimizer.artifacts.bundle import EdgeSettings, open_bundle
from optimizer.artifacts.plan import Plan
from optimizer.policy.retry import Clock, RetryPolicy
from protos.messages import Open
from protos.wire import MAX_RESUME_S


class EdgeClient:
    """One device with one bundle.

    bundle: the folder. server: HOST:PORT, or several to fall back on; none is needed when the
    plan puts the whole model on the edge. concurrency: generations that may run at once, each
    with a KV cache of its own; a further one waits. threads, spinning: of the front's kernels, see
    FrontEngine. memory_limit_bytes: refuse to load a front with which this process would take
    more (None: what the plan was made for, if it was for some). prefill_chunk: prompt tokens a
    frame, always (None: at most the plan's, and as many as suit what is measured, see
    `optimizer.policy.prefill_chunks`). draft_model: a bundle of a small model that lies wholly on
    the edge, for drafting by `model`. trace: a text stream that gets one JSON line a frame.
    Raises BundleError, FrontError, MemoryLimitError or InputError when it cannot be set up.
    """

    def __init__(
        self,
        bundle: Path | str,
        server: str | Sequence[str] | None = None,
        *,
        credentials: Credentials | None = None,
        concurrency: int = 1,
        threads: int | None = None,
        spinning: bool = False,
        memory_limit_bytes: int | None = None,
        prefill_chunk: int | None = None,
        draft_model: Path | str | None = None,
        patience: RetryPolicy | None = None,
        trace: TextIO | None = None,
    ) -> None:
        opened = open_bundle(Path(bundle), role="edge")
        self.plan = opened.plan
        geometry = self.plan.model.geometry
        addresses = [server] if isinstance(server, str) else list(server or ())
        if not addresses and not self.plan.edge_is_whole:
            raise InputError("this plan needs a server: give its address (--server HOST:PORT)")
        if memory_limit_bytes is None:
            memory_limit_bytes = _planned_limit(self.plan)
        if memory_limit_bytes is not None:
            return_freed_blocks()  # before the first large ones come and go
        self._settings = EdgeSettings.load(opened.edge_dir)
        template_path = opened.edge_dir / "chat_template.jinja"
        template = template_path.read_text() if template_path.is_file() else None
        self.tokenizer = ChatTokenizer(opened.edge_dir / "tokenizer.json", template, self._settings)
        tables = opened.codec_dir / f"split-{self.plan.partition.split}.tables"
        self.ladder = (
            Ladder.load(tables, hidden_size=geometry.hidden_size)
            if tables.is_file()
            else Ladder.lossless(geometry.hidden_size)
        )
        self._most_chunk_tokens = prefill_chunk or self.plan.prefill_chunk
        if memory_limit_bytes is not None:
            self._most_chunk_tokens = fitting_chunk(
                replace(self.plan, prefill_chunk=self._most_chunk_tokens),
                limit_bytes=memory_limit_bytes,
                runtime_bytes=runtime_bytes(),
                sequences=concurrency,
            )
        self._fronts: queue.SimpleQueue[FrontEngine] = queue.SimpleQueue()
        for front in FrontEngine.load(
            opened.edge_dir,
            plan=self.plan,
            count=concurrency,
            threads=threads,
            spinning=spinning,
            frugal=memory_limit_bytes is not None,
            mapped=(tables,),
        ):
            self._fronts.put(front)
        self._transports = [GrpcTransport(address, credentials) for address in addresses]
        self._patience = patience or RetryPolicy()
        self._clock = Clock()
        self._adaptive_chunks = prefill_chunk is None
        self._prefixes = PrefixMemory()
        self._draft_choice = DraftChoice(
            opened, self._clock.now, model=None if draft_model is None else Path(draft_model)
        )
        self._trace = trace

    def __enter__(self) -> EdgeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channels. The client cannot be used afterwards."""
        for transport in self._transports:
            transport.close()

    def complete(
        self, prompt: str | Sequence[ChatMessage], request: CompletionRequest | None = None
    ) -> Completion:
        """Generate to the end. `prompt`: plain text, or a conversation for the chat template."""
        run = self.start(prompt, request)
        for _ in run:
            pass
        return run.completion

    def start(
        self, prompt: str | Sequence[ChatMessage], request: CompletionRequest | None = None
    ) -> CompletionRun:
        """Begin a generation; iterate over it for its pieces, then read `completion`."""
        ids = (
            self.tokenizer.encode(prompt)
            if isinstance(prompt, str)
            else self.tokenizer.encode_chat(prompt)
        )
        return self.start_ids(ids, request)

    def start_ids(
        self, prompt_ids: Sequence[int], request: CompletionRequest | None = None
    ) -> CompletionRun:
        """Like `start`, from token ids. InputError when they do not fit the plan."""
        request = request or CompletionRequest()
        if not prompt_ids:
            raise InputError("the prompt is empty")
        max_new_tokens = self._max_new_tokens(len(prompt_ids), request)
        levels = self._levels(request.level)
        self._draft_choice.check(request.draft)
        return CompletionRun(
            fronts=self._fronts,
            generation_of=lambda front: self._generation(
                front, request, levels, len(prompt_ids), max_new_tokens
            ),
            prompt_ids=tuple(prompt_ids),
            hidden_size=self.plan.model.geometry.hidden_size,
            text=self.tokenizer.stream(),
            stop=StopRule(
                stop_token_ids=() if request.ignore_eos else self._settings.stop_token_ids,
                stop_strings=request.stop,
                max_new_tokens=max_new_tokens,
            ),
            with_logprobs=request.sampling.logprobs,
            clock=self._clock,
            trace=self._trace,
        )

    def _max_new_tokens(self, num_prompt_tokens: int, request: CompletionRequest) -> int:
        """How many tokens to generate. InputError when they do not fit and may not shift."""
        room = self.plan.max_tokens - num_prompt_tokens
        if request.context == "shift":
            return max(room, 1) if request.max_new_tokens is None else request.max_new_tokens
        if room < 1:
            raise InputError(
                f"the prompt has {num_prompt_tokens} tokens; the plan allows "
                f"{self.plan.max_tokens} for prompt and answer together"
            )
        max_new_tokens = room if request.max_new_tokens is None else request.max_new_tokens
        if max_new_tokens > room:
            raise InputError(
                f"prompt ({num_prompt_tokens}) and new tokens ({max_new_tokens}) exceed the plan's "
                f"{self.plan.max_tokens} tokens: ask for at most {room} new ones"
            )
        return max_new_tokens

    def _generation(
        self,
        front: FrontEngine,
        request: CompletionRequest,
        levels: tuple[str, ...],
        num_prompt_tokens: int,
        max_new_tokens: int,
    ) -> TokenSource:
        """The source of one answer's tokens; one that shifts when the answer may outgrow the plan.

        Every part after a shift gets a seed of its own: its positions start anew, and the
        sampler's random numbers depend on seed and position.
        """
        total = num_prompt_tokens + max_new_tokens
        if request.context == "refuse" or total <= self.plan.max_tokens:
            return self._part(front, request, levels, total)

        def part(index: int, max_tokens: int) -> TokenSource:
            sampling = replace(request.sampling, seed=(request.sampling.seed + index) % (1 << 64))
            return self._part(front, replace(request, sampling=sampling), levels, max_tokens)

        return ShiftingGeneration(
            generation_of=part,
            front=front,
            capacity=self.plan.max_tokens,
            max_new_tokens=max_new_tokens,
        )

    def _part(
        self,
        front: FrontEngine,
        request: CompletionRequest,
        levels: tuple[str, ...],
        max_tokens: int,
    ) -> TokenSource:
        """One session of at most `max_tokens` tokens."""
        if self.plan.edge_is_whole:
            return LocalGeneration(
                front=front,
                sampling=request.sampling,
                chunk_tokens=self._most_chunk_tokens,
                clock=self._clock,
            )
        return RemoteGeneration(
            front=front,
            ladder=self.ladder,
            selector=LevelSelector(
                ladder=self.ladder, levels=levels, deadline_s=request.deadline_tbt_s
            ),
            connector=Connector(
                request=self._announcement(request, max_tokens),
                transports=self._transports,
                patience=self._patience,
                clock=self._clock,
                rng=random.Random(),
            ),
            chunk_tokens=self._most_chunk_tokens,
            adaptive_chunks=self._adaptive_chunks,
            patience=self._patience,
            clock=self._clock,
            drafting=self._draft_choice.drafting(request.draft),
            prefixes=self._prefixes,
        )

    def _announcement(self, request: CompletionRequest, max_tokens: int) -> Open:
        return Open(
            session_id=secrets.token_hex(16),
            model_sha256=self.plan.model.sha256,
            split=self.plan.partition.split,
            hidden_size=self.plan.model.geometry.hidden_size,
            codec_tables_sha256=self.ladder.tables_sha256,
            max_tokens=max_tokens,
            sampling=request.sampling,
            # Long enough for every try to come back to this server.
            resume_s=min(self._patience.recover_s, MAX_RESUME_S),
        )

    def _levels(self, wanted: str) -> tuple[str, ...]:
        """The levels a generation may use, the first one to begin with."""
        names = self.ladder.names
        if wanted == AUTO_LEVEL:
            level = self.plan.level
            return names[names.index(level) :] if level in names else (level,)
        if wanted.isdecimal() and int(wanted) < len(names):
            return (names[int(wanted)],)
        if wanted not in (*names, *self.ladder.extra_names):
            raise InputError(f"no level {wanted!r}: this bundle has {', '.join(names)}")
        return (wanted,)


def _planned_limit(plan: Plan) -> int | None:
    """The memory that the plan was made for, where it was made for some: no more is taken."""
    limit = None if plan.limits is None else plan.limits.edge_memory_bytes
    return None if limit is None else int(limit)
