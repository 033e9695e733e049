"""Recorded sessions of real hidden states, and clients that play them against a server.

A recording is what an edge with an exact front would send: the prompt's rows in chunks and one
frame a decode step, encoded by the bundle's own ladder. The tokens are the whole model's greedy
ones, so a client need not compute anything while it plays: the load is the server's alone. What
the server answers is compared with what was recorded where the caller asks for it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import torch

from codec.ladder import Ladder
from decoding.params import SamplingParams
from protos import wire
from protos.messages import Close, Drafts, Frame, Open, Opened, Result

CHUNK = 128


@dataclass(frozen=True)
class Recording:
    """One session: what to announce, its frames, and the tokens it was recorded with."""

    request: Open
    frames: tuple[Frame, ...]
    tokens: tuple[int, ...]

    @functools.cached_property
    def messages(self) -> tuple[bytes, ...]:
        """The frames as they go on the wire: what they say does not depend on any answer."""
        return tuple(wire.encode_edge(frame) for frame in self.frames)

    @property
    def num_prefill(self) -> int:
        return len(self.frames) - len(self.tokens) + 1

    def cut(self, num_tokens: int) -> Recording:
        """The same session, ending after `num_tokens` tokens."""
        frames = self.frames[: self.num_prefill + num_tokens - 1]
        return Recording(self.request, frames, self.tokens[:num_tokens])


@dataclass
class Played:
    """What one client saw. Times on the event loop's clock."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    begun_s: float = 0.0
    token_at_s: list[float] = field(default_factory=list)
    compute_s: list[float] = field(default_factory=list)
    batch_sessions: list[int] = field(default_factory=list)
    guessed: int = 0  # messages of guesses, which nobody uses
    refused: str = ""
    recording: int = 0  # which of several it played


@torch.inference_mode()
def record(
    model: Any, model_sha256: str, ladder: Ladder, level: str, *, split: int, prompt: list[int],
    num_tokens: int, logprobs: bool = False,
) -> Recording:  # fmt: skip
    """Greedy tokens of the whole model (transformers), and the frames of its layer `split`."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens,
        min_new_tokens=num_tokens, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    tokens = out[0].tolist()
    hidden = model.model(out, output_hidden_states=True, use_cache=False).hidden_states[split][0]
    spans = [(at, min(at + CHUNK, len(prompt))) for at in range(0, len(prompt), CHUNK)]
    spans += [(at, at + 1) for at in range(len(prompt), len(tokens) - 1)]
    frames = []
    for sequence, (begin, end) in enumerate(spans):
        row_ids = np.asarray(tokens[begin:end], dtype=np.int64)
        frames.append(
            Frame(
                sequence=sequence,
                first_position=begin,
                token_ids=tuple(tokens[begin:end]),
                hidden=ladder.encode(level, hidden[begin:end].numpy(), row_ids),
                want_token=end >= len(prompt),
            )
        )
    request = Open(
        session_id="recorded",
        model_sha256=model_sha256,
        split=split,
        hidden_size=hidden.shape[1],
        codec_tables_sha256=ladder.tables_sha256,
        max_tokens=len(tokens),
        sampling=SamplingParams(logprobs=logprobs),
    )
    return Recording(request, tuple(frames), tuple(tokens[len(prompt) :]))


class Player:
    """One stream of a channel."""

    def __init__(self, channel: grpc.aio.Channel, recording: Recording) -> None:
        # grpc-stubs wants arguments that grpc.aio does without.
        untyped: Any = channel
        self._call = untyped.stream_stream(wire.GENERATE_PATH)()
        self._recording = recording
        self.played = Played()

    async def open(self) -> None:
        """Raises AioRpcError when the server refuses."""
        request = dataclasses.replace(self._recording.request, session_id=secrets.token_hex(16))
        self.played.begun_s = time.perf_counter()
        await self._call.write(wire.encode_edge(request))
        opened = await self._read()
        if not isinstance(opened, Opened):
            raise RuntimeError(f"expected Opened, got {opened}")

    async def prefill(self) -> None:
        """All chunks at once, as an edge pipelines them; returns with the first token."""
        messages = self._recording.messages[: self._recording.num_prefill]
        for message in messages:
            await self._call.write(message)
        for _ in messages:
            self._take(await self._read())

    async def decode(self, *, pause_s: float = 0.0, stop: asyncio.Event | None = None) -> None:
        """Step after step, each as soon as the one before it is answered (plus `pause_s`)."""
        for message in self._recording.messages[self._recording.num_prefill :]:
            if stop is not None and stop.is_set():
                return
            if pause_s:
                await asyncio.sleep(pause_s)
            await self._call.write(message)
            self._take(await self._read())

    async def send_unread(self, frame: Frame) -> None:
        """Send without ever reading the answer."""
        await self._call.write(wire.encode_edge(frame))

    async def close(self) -> None:
        await self._call.write(wire.encode_edge(Close()))
        await self._read()

    def cancel(self) -> None:
        self._call.cancel()

    def _take(self, result: Any) -> None:
        if not isinstance(result, Result):
            raise RuntimeError(f"expected a result, got {result}")
        if result.token_ids:
            self.played.tokens.extend(result.token_ids)
            self.played.logprobs.extend(result.logprobs)
            self.played.token_at_s.append(time.perf_counter())
            self.played.compute_s.append(result.timings.compute_s)
            self.played.batch_sessions.append(result.timings.batch_sessions)

    async def _read(self) -> Any:
        while True:
            data = await self._call.read()
            if not isinstance(data, bytes):  # grpc.aio.EOF
                await self._call.wait_for_connection()
                raise RuntimeError(f"the stream ended: {await self._call.code()}")
            message = wire.decode_cloud(data)
            if not isinstance(message, Drafts):
                return message
            self.played.guessed += 1


async def opened(channel: grpc.aio.Channel, recording: Recording) -> Player:
    """A player whose stream is open: a server takes few streams at once that are not."""
    player = Player(channel, recording)
    await player.open()
    return player


async def play_together(
    address: str, recordings: list[Recording], *, pause_s: float = 0.0
) -> tuple[list[Played], float]:
    """All at once: everybody prefills, then everybody decodes. Returns tokens/s of the decoding.

    pause_s: between an answer and the next frame.

    The rate counts from the moment the last one starts to decode until the first one ends, so
    that every step in it had all of them in it.
    """
    options = [("grpc.use_local_subchannel_pool", 1)]
    gc.collect()
    gc.freeze()  # the recorder's model is garbage collection's business no more
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        players = []
        for recording in recordings:
            players.append(await opened(channel, recording))
            await players[-1].prefill()
        await asyncio.gather(*(player.decode(pause_s=pause_s) for player in players))
        played = [player.played for player in players]
        for player in players:
            await player.close()
    begin = max(p.token_at_s[1] for p in played)
    end = min(p.token_at_s[-1] for p in played)
    count = sum(begin < at <= end for p in played for at in p.token_at_s)
    return played, count / (end - begin)


def quantile(values: list[float], q: float) -> float:
    return float(np.quantile(np.asarray(values), q)) if values else 0.0


def gaps_s(played: list[Played]) -> list[float]:
    """Times between successive tokens, of all clients."""
    return [
        b - a for p in played for a, b in zip(p.token_at_s[1:-1], p.token_at_s[2:], strict=True)
    ]
