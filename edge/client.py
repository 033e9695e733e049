"""The device's entry point: open a bundle once, then ask for as many completions as you like.

from splitpoint import EdgeClient

with EdgeClient("bundle", server="127.0.0.1:50051") as client:
    print(client.complete("The capital of France is").text)
"""

from __future__ import annotations

import queue
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
from edge.draft.factory import DrafterFactory
from edge.errors import InputError
from edge.generation.completion import CompletionRequest, CompletionRun
from edge.generation.factory import GenerationFactory
from edge.generation.report import Completion
from edge.generation.stopping import StopRule
from edge.net.grpc_transport import Credentials, GrpcTransport
from optimizer.artifacts.bundle import Bundle, EdgeSettings, open_bundle
from optimizer.artifacts.plan import Plan
from optimizer.policy.retry import Clock, RetryPolicy


class EdgeClient:
    """One device with one bundle. Use it as a context manager, or call `close`.

    bundle: the folder. server: HOST:PORT, or several to fall back on; none is needed when the plan
    puts the whole model on the edge. credentials: for a server that is not plain loopback.
    concurrency: generations that may run at once, each with a KV cache of its own; a further one
    waits. threads, spinning: of the front's kernels, see FrontEngine.
    memory_limit_bytes: refuse to load a front with which this process would take more (None: the
    limit that the plan was made for, if it has one). prefill_chunk: prompt tokens a frame, always
    (None: at most the plan's, and as many as suit what is measured, see
    `optimizer.policy.prefill_chunks`). draft_model: a bundle of a small model that lies wholly on
    the edge, for drafting by `model`. retry_policy: how long to wait for a server (None: its
    defaults). trace: a text stream that gets one JSON line a frame. share_prefixes: let the cloud
    reuse the beginnings of prompts among all devices with this tenant's tokens. A device of the
    tenant can then find out whether a text that it guesses was sent; so not by default.
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
        retry_policy: RetryPolicy | None = None,
        trace: TextIO | None = None,
        share_prefixes: bool = False,
    ) -> None:
        opened = open_bundle(Path(bundle), role="edge")
        self.plan = opened.plan
        addresses = [server] if isinstance(server, str) else list(server or ())
        if not addresses and not self.plan.edge_is_whole:
            raise InputError("this plan needs a server: give its address (--server HOST:PORT)")
        if memory_limit_bytes is None:
            memory_limit_bytes = _planned_limit(self.plan)
        if memory_limit_bytes is not None:
            return_freed_blocks()  # before the first large blocks are allocated and freed
        self._settings = EdgeSettings.load(opened.edge_dir)
        self.tokenizer = _tokenizer(opened, self._settings)
        tables = opened.codec_dir / f"split-{self.plan.partition.split}.tables"
        self.ladder = _ladder(tables, self.plan)
        chunk_tokens = prefill_chunk or self.plan.prefill_chunk
        if memory_limit_bytes is not None:
            chunk_tokens = fitting_chunk(
                replace(self.plan, prefill_chunk=chunk_tokens),
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
            low_memory=memory_limit_bytes is not None,
            mapped=(tables,),
        ):
            self._fronts.put(front)
        self._transports = [GrpcTransport(address, credentials) for address in addresses]
        self._clock = Clock()
        self._generations = GenerationFactory(
            plan=self.plan,
            ladder=self.ladder,
            transports=self._transports,
            drafters=DrafterFactory(
                opened, model=None if draft_model is None else Path(draft_model)
            ),
            chunk_tokens=chunk_tokens,
            adaptive_chunks=prefill_chunk is None,
            retry_policy=retry_policy or RetryPolicy(),
            clock=self._clock,
            share_prefixes=share_prefixes,
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
        """Generate to the end and return the outcome.

        prompt: plain text, or a conversation for the chat template. request: None for the defaults.
        Raises InputError when the request does not fit the plan, and a TransportError when no
        server answers before the first token.
        """
        run = self.start(prompt, request)
        for _ in run:
            pass
        return run.completion

    def start(
        self, prompt: str | Sequence[ChatMessage], request: CompletionRequest | None = None
    ) -> CompletionRun:
        """Begin a generation; iterate over it for its text pieces, then read `completion`.

        Raises InputError when the request does not fit the plan. See `complete`.
        """
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
        asked = request or CompletionRequest()
        if not prompt_ids:
            raise InputError("the prompt is empty")
        max_new_tokens = self._max_new_tokens(len(prompt_ids), asked)
        self._generations.check(asked)
        return CompletionRun(
            fronts=self._fronts,
            generation_of=lambda front: self._generations.generation(
                front, asked, num_prompt_tokens=len(prompt_ids), max_new_tokens=max_new_tokens
            ),
            prompt_ids=tuple(prompt_ids),
            hidden_size=self.plan.model.geometry.hidden_size,
            text=self.tokenizer.stream(),
            stop=StopRule(
                stop_token_ids=() if asked.ignore_eos else self._settings.stop_token_ids,
                stop_strings=asked.stop,
                max_new_tokens=max_new_tokens,
            ),
            with_logprobs=asked.sampling.logprobs,
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


def _planned_limit(plan: Plan) -> int | None:
    """The memory that the plan was made for; None when it was made for no limit."""
    limit = None if plan.limits is None else plan.limits.edge_memory_bytes
    return None if limit is None else int(limit)


def _tokenizer(bundle: Bundle, settings: EdgeSettings) -> ChatTokenizer:
    """The bundle's tokenizer, with its chat template if it has one."""
    template_path = bundle.edge_dir / "chat_template.jinja"
    template = template_path.read_text() if template_path.is_file() else None
    return ChatTokenizer(bundle.edge_dir / "tokenizer.json", template, settings)


def _ladder(tables: Path, plan: Plan) -> Ladder:
    """The levels of the codec's tables; the lossless one alone without tables."""
    hidden_size = plan.model.geometry.hidden_size
    if tables.is_file():
        return Ladder.load(tables, hidden_size=hidden_size)
    return Ladder.lossless(hidden_size)
