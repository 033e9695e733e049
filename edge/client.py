"""The device's entry point: open a bundle once, then ask for as many completions as you like.

from splitpoint import EdgeClient

with EdgeClient("bundle", server="127.0.0.1:50051") as client:
    print(client.complete("The capital of France is").text)
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from decoding.params import whole_in
from edge.device.bundle_parts import codec_of, planned_limit, tokenizer_of
from edge.device.front import FrontEngine
from edge.device.front_loading import load_bundle_front
from edge.device.half_front import counts_halves
from edge.device.memory_limit import allowed
from edge.device.tokenizer import ChatMessage
from edge.device.whole_model import WholeModel
from edge.draft.factory import DrafterFactory
from edge.errors import InputError
from edge.generation.completion import CompletionRequest, CompletionRun
from edge.generation.device_model import DeviceModel
from edge.generation.factory import GenerationFactory
from edge.generation.link_notice import OnLink, unheard
from edge.generation.report import Completion
from edge.generation.split_watch import SplitWatch
from edge.generation.stopping import StopRule
from edge.net.connection_keeper import ConnectionKeeper
from edge.net.credentials import Credentials
from edge.net.grpc_transport import GrpcTransport
from edge.prompt_lengths import LengthRules
from edge.text_input import check_text, conversation_texts
from hwprofiles.heap import return_freed_blocks
from hwprofiles.providers.table import AUTO
from hwprofiles.sensors.registry import energy_meter
from optimizer.artifacts.bundle import (
    DEFAULT_TABLES,
    EDGE_SETTINGS_NAME,
    Bundle,
    EdgeSettings,
    open_bundle,
)
from optimizer.policy.power import FULL_EFFORT, DraftEffort
from optimizer.policy.retry import Clock, RetryPolicy
from protos.addresses import parse_address
from protos.errors import AddressError

# With a model of its own, a device does not look long for a server.
BRIEF: Final = RetryPolicy(connect_s=5.0, recover_s=5.0)


def queued(fronts: Sequence[FrontEngine]) -> queue.SimpleQueue[FrontEngine]:
    """A queue that holds them."""
    waiting: queue.SimpleQueue[FrontEngine] = queue.SimpleQueue()
    for front in fronts:
        waiting.put(front)
    return waiting


class EdgeClient:
    """One device with one bundle. Use it as a context manager, or call `close`.

    bundle: the folder. server: HOST:PORT, or several to fall back on; none is needed when the plan
    puts the whole model on the edge. credentials: for a server that is not plain loopback.
    concurrency: generations that may run at once, each with a KV cache of its own; a further one
    waits. threads, spinning: of the front's kernels, see FrontEngine; a draft model's and a
    fallback's have as many threads. provider: what runs the front, a name of
    `hwprofiles.providers.table`, or "auto" (`edge.device.front_loading`); `front_report` says what
    was taken. A fallback gets it too, a draft model runs on the CPU. draft_effort: the most that
    generations may guess ahead.
    memory_limit_bytes: refuse to load a front with which this process, fallback and draft model
    among it, would take more (None: the limit that the plan was made for, if it has one).
    prefill_chunk: prompt tokens a frame, always (None: at most the plan's, and as many as suit what
    is measured, see `optimizer.policy.prefill_chunks`). draft_model: a bundle of a small model that
    lies wholly on the edge, for drafting by `model`. fallback: such a bundle that answers when no
    server does, and needs none. allow_control_tokens: texts of control tokens in a message are
    control tokens, not text (only for messages that you trust). retry_policy: how long to wait for
    a server (None: its defaults; with a fallback 5 seconds). trace: a text stream that gets one
    JSON line a frame.
    keep_connected: for a program that waits for a user: keep the first server's connection ready.
    share_prefixes: let the cloud reuse the beginnings of prompts among all devices with this
    tenant's tokens. A device of the tenant can then find out whether a text that it guesses was
    sent; so not by default. on_link: told when a generation loses its server, waits and goes on;
    called in the generation's thread. tables: the name of the codec tables to use, of those that
    the bundle has, or "auto": for each prompt the cheapest (`edge.generation.tables_choice`).
    on_finished: told every completion, in its thread; it must not raise. Completions have the
    device's energy where a sensor can be read, unless generations may overlap.
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
        draft_effort: DraftEffort = FULL_EFFORT,
        provider: str = AUTO,
        memory_limit_bytes: int | None = None,
        prefill_chunk: int | None = None,
        draft_model: Path | str | None = None,
        fallback: Path | str | None = None,
        allow_control_tokens: bool = False,
        retry_policy: RetryPolicy | None = None,
        trace: TextIO | None = None,
        share_prefixes: bool = False,
        keep_connected: bool = False,
        on_link: OnLink = unheard,
        tables: str = DEFAULT_TABLES,
        on_finished: Callable[[Completion], None] | None = None,
    ) -> None:
        addresses, credentials = checked_addresses(server), credentials or Credentials()
        credentials.check()
        opened = open_bundle(Path(bundle), role="edge")
        self._trace, self._on_finished, self.plan = trace, on_finished, opened.plan
        if not addresses and fallback is None and not self.plan.edge_is_whole:
            raise InputError("this plan needs a server: give its address (--server HOST:PORT)")
        others, halves = (fallback, draft_model), counts_halves(opened, provider)
        copies: Any = {"others": others, "sequences": concurrency, "halves": halves}
        limit = planned_limit(self.plan, memory_limit_bytes, **copies)
        if limit.process_bytes is not None:
            return_freed_blocks()  # before the first large blocks are allocated and freed
        self._settings = EdgeSettings.load(opened.path(f"edge/{EDGE_SETTINGS_NAME}").parent)
        self.tokenizer = tokenizer_of(
            opened, self._settings, allow_control_tokens=allow_control_tokens
        )
        self._lengths, self._lone = LengthRules(self.plan, self.tokenizer), concurrency == 1
        self.tables, paths, ladders = codec_of(opened, tables)
        self.ladder = ladders[self.tables][self.plan.partition.split]
        fitting = allowed(self.plan, prefill_chunk, limit, sequences=concurrency)
        self._connect(addresses, credentials, keep=keep_connected)  # while the front is loaded
        try:
            loaded = load_bundle_front(
                opened,
                provider=provider,
                count=concurrency,
                threads=threads,
                spinning=spinning,
                memory_limit_bytes=limit.front_bytes,
                mapped=paths,
                streamed_layers=fitting.streamed_layers,
            )
            self.front_report, self.num_threads = loaded.report, loaded.engines[0].num_threads
            self._fronts, self._clock = queued(loaded.engines), Clock()
            for_others = {"threads": threads, "memory_limit_bytes": limit.process_bytes}
            own_model = self._own_model(fallback, opened, provider=provider, **for_others)
            drafters = DrafterFactory(opened, draft_model, effort=draft_effort, **for_others)
            self._generations = GenerationFactory(
                plan=self.plan,
                ladders=ladders.pop(self.tables),
                more_ladders=ladders,
                transports=self._transports,
                drafters=drafters,
                chunk_tokens=fitting.chunk_tokens,
                adaptive_chunks=prefill_chunk is None and loaded.report.may_adapt_chunks,
                retry_policy=retry_policy or (RetryPolicy() if own_model is None else BRIEF),
                clock=self._clock,
                share_prefixes=share_prefixes,
                on_link=on_link,
                end_token_ids=self._settings.stop_token_ids,
                tokenizer_path=opened.path("edge/tokenizer.json"),
                fallback=own_model,
                wish=self._split_wish(),
            )
        except BaseException:  # the connection and its keeper have begun
            self.close()
            raise

    def _connect(self, addresses: Sequence[str], credentials: Credentials, *, keep: bool) -> None:
        """Begin to connect to the first server; keep: and keep the connection ready."""
        self._transports = [GrpcTransport(address, credentials) for address in addresses]
        self._keeper: ConnectionKeeper | None = None
        for transport in self._transports[:1]:
            if keep:  # its first question connects
                self._keeper = ConnectionKeeper(transport)
                self._keeper.start()
            else:
                transport.warm()

    def _split_wish(self) -> SplitWatch | None:
        """What watches the device where its front has segments to give away."""
        if len(self.plan.splits) == 1:
            return None
        return SplitWatch(self.plan.splits, now=self._clock.now)

    def _own_model(
        self, root: Path | str | None, opened: Bundle, **options: Any
    ) -> DeviceModel | None:
        """The fallback of the device whose bundle is `opened`, if it has one."""
        if root is None:
            return None
        model = WholeModel(Path(root), like=opened, what="a fallback", **options)
        end_ids = self._settings.stop_token_ids
        return DeviceModel(model, clock=self._clock, end_token_ids=end_ids)

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
        if self._keeper is not None:
            self._keeper.stop()
        for transport in self._transports:
            transport.close()
        if self._keeper is not None:
            self._keeper.join()

    @property
    def server_answers(self) -> bool | None:
        """Whether the first server answered when it was last asked, some seconds ago, by a client
        that keeps connected. None: nobody asked, or there is no server."""
        return None if self._keeper is None else self._keeper.is_answered

    @property
    def level_names(self) -> tuple[str, ...]:
        """Names of the compression levels, best quality first."""
        return self.ladder.names

    @property
    def drafter_names(self) -> tuple[str, ...]:
        """What `CompletionRequest.draft` may be on this device."""
        return self._generations.drafter_names

    def check(self, request: CompletionRequest) -> None:
        """InputError for a request that no prompt could be served with here."""
        self._generations.check(request)

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
        self,
        prompt: str | Sequence[ChatMessage],
        request: CompletionRequest | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> CompletionRun:
        """Begin a generation; iterate over it for its text pieces, then read `completion`.

        Raises InputError when the request does not fit the plan. A text that is too long for the
        plan whatever its tokens are is refused before it is tokenized. tools: JSON schemas for the
        chat template. See `complete`.
        """
        return self.start_ids(self.prompt_ids(prompt, request, tools=tools), request)

    def prompt_ids(
        self,
        prompt: str | Sequence[int] | Sequence[ChatMessage],
        request: CompletionRequest | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """The token ids of a prompt; ids stay as they are. Raises InputError as `start`."""
        if isinstance(prompt, str):
            check_text(prompt, "the prompt")
            self._lengths.check_text((prompt,), request or CompletionRequest())
            return self.tokenizer.encode(prompt)
        messages = [item for item in prompt if not isinstance(item, int)]
        if not messages:
            return [item for item in prompt if isinstance(item, int)]
        texts = conversation_texts(messages, tools or ())
        self._lengths.check_text(texts, request or CompletionRequest())
        return self.tokenizer.encode_chat(messages, tools)

    def start_ids(
        self, prompt_ids: Sequence[int], request: CompletionRequest | None = None
    ) -> CompletionRun:
        """Like `start`, from token ids. InputError when they do not fit the plan or the model."""
        asked = request or CompletionRequest()
        if not prompt_ids:
            raise InputError("the prompt is empty")
        vocab_size = self.plan.model.geometry.vocab_size
        for token_id in prompt_ids:  # before anything is computed or sent
            try:
                whole_in("a token id", token_id, 0, vocab_size - 1)
            except ValueError as error:
                raise InputError(f"the prompt: {error}") from error
        max_new_tokens = self._lengths.max_new_tokens(len(prompt_ids), asked)
        self._generations.check(asked)
        return CompletionRun(
            fronts=self._fronts,
            generation_of=lambda front: self._generations.generation(
                front, asked, num_prompt_tokens=len(prompt_ids), max_new_tokens=max_new_tokens
            ),
            prompt_ids=tuple(prompt_ids),
            hidden_size=self.plan.model.geometry.hidden_size,
            text=self.tokenizer.stream(prompt_ids),
            stop=StopRule(
                stop_token_ids=() if asked.ignore_eos else self._settings.stop_token_ids,
                stop_strings=asked.stop,
                max_new_tokens=max_new_tokens,
            ),
            with_logprobs=asked.sampling.logprobs,
            with_top_logprobs=asked.sampling.top_logprobs > 0,
            clock=self._clock,
            trace=self._trace,
            tables="" if self.plan.edge_is_whole else self.tables,
            on_finished=self._on_finished,
            meter=energy_meter() if self._lone else None,
        )

    def max_prompt_bytes(self, context: str) -> int:
        """The most bytes of UTF-8 text, templates aside, that a prompt can have and still fit.

        context: what happens beyond the plan's tokens.
        """
        return self._lengths.max_prompt_bytes(context)


def checked_addresses(server: str | Sequence[str] | None) -> list[str]:
    """The servers' addresses as HOST:PORT. InputError for one that is none, or port 0."""
    given = [server] if isinstance(server, str) else list(server or ())
    try:
        return [str(parse_address(address, lowest_port=1)) for address in given]
    except AddressError as error:
        raise InputError(f"server {error}") from error
