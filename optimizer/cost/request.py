"""One request end to end over one deployment: time to the first token, and time between tokens.

The formulas are `round_trip.py`'s, the parts the other cost models'. With drafting a round carries
the last token and k guesses and brings home `tokens_per_round` of them, so the time between tokens
is the round's over that number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hwprofiles.profiles.device import DeviceProfile
from hwprofiles.profiles.rates import Floats
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Partition
from optimizer.cost.cloud import BackCost, back_kv_bits, sample_s
from optimizer.cost.codec import LevelCost, answer_bytes, decode_s, encode_s, frame_bytes
from optimizer.cost.edge import chunk_runs, front_prefill, front_step
from optimizer.cost.link import LinkPoint
from optimizer.cost.round_trip import (
    OPEN_ROUND_TRIPS,
    PromptChunks,
    RequestParts,
    between_tokens_s,
    cloud_share_s,
    first_answer_s,
    opening_s,
    prompt_stages_s,
    queue_s,
    round_over,
    stacks_s,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSetting:
    """What a request runs on. `level` has the codec's bits and, where known, its times.

    `kv_bits` are the edge's; the cloud keeps its caches in its own compute type.
    """

    edge: DeviceProfile
    cloud: DeviceProfile
    link: LinkPoint
    geometry: ModelGeometry
    partition: Partition
    kv_bits: int
    level: LevelCost
    chunk: int = 128
    exact_front: bool = False
    front_layer_bits: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the edge has all layers and the head, and so no cloud is asked."""
        return self.partition.split == self.geometry.num_layers

    @property
    def back(self) -> BackCost:
        """The cloud's layers."""
        return BackCost(
            self.cloud,
            self.geometry,
            num_layers=self.geometry.num_layers - self.partition.split,
            back_bits=self.partition.back_bits,
            kv_bits=back_kv_bits(self.cloud, self.partition.back_bits),
        )

    @property
    def stack_s(self) -> float:
        """What both network stacks add to a round trip."""
        return stacks_s(self.edge, self.cloud)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftedRound:
    """How a round guesses: `num_drafts` guesses that take `draft_s` to make, after which a round
    brings `tokens_per_round` tokens on average (1: none was right)."""

    num_drafts: int
    tokens_per_round: float
    draft_s: float = 0.0


NO_DRAFTS: Final = DraftedRound(num_drafts=0, tokens_per_round=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTime:
    """A request's prediction. `open_s`: connecting; `prefill_s`: the rest of `ttft_s`.

    `round_parts` is one decoding round in the middle of the answer; `tbt_s` is its total over the
    tokens it brings.
    """

    ttft_s: float
    open_s: float
    prefill_s: float
    round_parts: RequestParts
    tbt_s: float
    total_s: float
    uplink_bytes: float
    uplink_bytes_per_token: float
    cloud_s: float
    cloud_s_per_token: float


def expected_tokens(acceptance: float, num_drafts: int) -> float:
    """Mean tokens of a round whose guesses are each right with probability a, independently:
    (1 - a^(k+1)) / (1 - a). Source: Leviathan et al. 2023, arXiv:2211.17192, eq. (1)."""
    if acceptance >= 1:
        return num_drafts + 1.0
    return (1 - acceptance ** (num_drafts + 1)) / (1 - acceptance)


def middle_position(prompt_tokens: int, new_tokens: int) -> int:
    """Tokens cached before the round in the middle of the answer, which stands for all rounds:
    step time is linear in the position."""
    return prompt_tokens + max(new_tokens - 1, 0) // 2


def round_parts(
    setting: RequestSetting,
    *,
    position: int,
    num_rows: int = 1,
    num_logits: int | None = None,
    batch: int = 1,
    num_answers: float = 1.0,
) -> RequestParts:
    """One round trip of `num_rows` rows with `position` tokens cached before them.

    `batch` sessions like this one share the server's steps. `num_logits` (all rows unless given)
    rows go through the head; `num_answers` tokens come back. Infinite over a dead link.
    """
    geometry, hidden = setting.geometry, setting.geometry.hidden_size
    front_s = front_step(
        setting.edge,
        geometry,
        split=setting.partition.split,
        weight_bits=setting.partition.front_bits,
        kv_bits=setting.kv_bits,
        num_rows=num_rows,
        position=position,
        exact=setting.exact_front,
        layer_bits=setting.front_layer_bits,
    ).total_s
    if setting.is_whole:
        return RequestParts(
            front_s=front_s, sample_s=sample_s(setting.edge, geometry, num_logits=1)
        )
    logits = num_rows if num_logits is None else num_logits
    back_s = float(
        setting.back.shared_step_s(
            num_rows=num_rows, position=position, num_logits=logits, batch=batch
        )
    )
    return round_over(
        setting.link,
        front_s=front_s,
        encode_s=encode_s(setting.level, hidden_size=hidden, num_rows=num_rows),
        num_bytes=frame_bytes(setting.level, hidden_size=hidden, num_rows=num_rows),
        queue_s=queue_s(back_s, batch),
        decode_s=decode_s(setting.level, hidden_size=hidden, num_rows=num_rows),
        back_s=back_s,
        sample_s=sample_s(setting.cloud, geometry, num_logits=logits),
        num_answer_bytes=answer_bytes(num_answers),
        stack_s=setting.stack_s,
    )


def prefill_s(
    setting: RequestSetting,
    *,
    num_tokens: int,
    batch: int = 1,
    connected_s: float = 0.0,
) -> float:
    """Seconds from the first chunk's start to the first token at the edge; `connected_s`: when the
    connection stands, over which chunks leave.

    Chunks go through front and encoder, the uplink, and decoder and back, each stage one chunk at
    a time; the last chunk's logits then make the token. With others on the server (`batch`), every
    chunk shares its step with their decode rows and waits half a step for it. The wait is part of
    the cloud's stage, so it adds up only while the cloud is the slowest stage.
    """
    front_s = front_prefill(
        setting.edge,
        setting.geometry,
        split=setting.partition.split,
        weight_bits=setting.partition.front_bits,
        kv_bits=setting.kv_bits,
        num_tokens=num_tokens,
        chunk=setting.chunk,
        exact=setting.exact_front,
        layer_bits=setting.front_layer_bits,
    )
    if setting.is_whole:
        return float(front_s.sum()) + sample_s(setting.edge, setting.geometry, num_logits=1)
    rows = _chunk_rows(num_tokens, setting.chunk)
    level, hidden = setting.level.of_prompt, setting.geometry.hidden_size
    back_s = _chunk_backs(setting, num_tokens, batch)
    decoding_s = np.array([decode_s(level, hidden_size=hidden, num_rows=n) for n in rows])
    encoding_s = np.array([encode_s(level, hidden_size=hidden, num_rows=n) for n in rows])
    chunks = PromptChunks(
        edge_s=front_s + encoding_s,
        cloud_s=queue_s(back_s, batch) + decoding_s + back_s,
        frame_bytes=np.array(
            [float(frame_bytes(level, hidden_size=hidden, num_rows=n)) for n in rows]
        ),
    )
    sampled = sample_s(setting.cloud, setting.geometry, num_logits=1)
    stages_s = float(prompt_stages_s(chunks, setting.link, connected_s=connected_s))
    return stages_s + first_answer_s(setting.link, sample_s=sampled, stack_s=setting.stack_s)


def predict_request(
    setting: RequestSetting,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    drafting: DraftedRound = NO_DRAFTS,
    open_round_trips: float = OPEN_ROUND_TRIPS,
) -> RequestTime:
    """TTFT, TBT and what they are made of, for one request of `prompt_tokens` and `new_tokens`.

    `open_round_trips` are spent before the first chunk leaves: OPEN_ROUND_TRIPS in a client's later
    requests, NEW_CONNECTION_ROUND_TRIPS in its first (one fewer without TLS); none when the edge
    holds the whole model. Meanwhile the front computes chunks.
    """
    whole = setting.is_whole
    if whole:
        drafting = NO_DRAFTS
    opened = (
        0.0
        if whole
        else opening_s(setting.link, round_trips=open_round_trips, stack_s=setting.stack_s)
    )
    ttft = prefill_s(setting, num_tokens=prompt_tokens, batch=batch, connected_s=opened)
    rows, tokens_per_round = 1 + drafting.num_drafts, drafting.tokens_per_round
    parts = round_parts(
        setting,
        position=middle_position(prompt_tokens, new_tokens),
        num_rows=rows,
        batch=batch,
        num_answers=tokens_per_round,
    )
    beside_s = drafting.draft_s + parts.beside_layers_s
    tbt = float(between_tokens_s(parts.layers_s, beside_s, tokens_per_round))
    rounds = max(new_tokens - 1, 0) / tokens_per_round
    round_bytes = frame_bytes(
        setting.level, hidden_size=setting.geometry.hidden_size, num_rows=rows
    )
    cloud_s = 0.0 if whole else float(cloud_share_s(parts.cloud_s, batch, 1.0))
    return RequestTime(
        ttft_s=ttft,
        open_s=opened,
        prefill_s=ttft - opened,
        round_parts=parts,
        tbt_s=tbt,
        total_s=ttft + max(new_tokens - 1, 0) * tbt,
        uplink_bytes=0.0 if whole else _prompt_bytes(setting, prompt_tokens) + rounds * round_bytes,
        uplink_bytes_per_token=0.0 if whole else round_bytes / tokens_per_round,
        cloud_s=0.0
        if whole
        else cloud_prefill_s(setting, num_tokens=prompt_tokens) + rounds * cloud_s,
        cloud_s_per_token=cloud_s / tokens_per_round,
    )


def cloud_prefill_s(setting: RequestSetting, *, num_tokens: int) -> float:
    """Seconds that a prompt keeps the server busy: decoding, the back, one row of logits."""
    hidden = setting.geometry.hidden_size
    decoding_s = sum(
        decode_s(setting.level, hidden_size=hidden, num_rows=rows)
        for rows in _chunk_rows(num_tokens, setting.chunk)
    )
    sampled = sample_s(setting.cloud, setting.geometry, num_logits=1)
    return sampled + decoding_s + float(_chunk_backs(setting, num_tokens, 1).sum())


def _chunk_backs(setting: RequestSetting, num_tokens: int, batch: int) -> Floats:
    """Seconds of the back for each chunk of a prompt, [N]. The last chunk alone makes logits."""
    back = setting.back
    parts = [
        np.broadcast_to(
            back.shared_step_s(
                num_rows=rows,
                position=np.array(starts, dtype=np.float64),
                num_logits=int(starts[-1] + rows == num_tokens),
                batch=batch,
            ),
            len(starts),
        )
        for rows, starts in chunk_runs(num_tokens, setting.chunk)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _prompt_bytes(setting: RequestSetting, num_tokens: int) -> int:
    level, hidden = setting.level.of_prompt, setting.geometry.hidden_size
    rows = _chunk_rows(num_tokens, setting.chunk)
    return sum(frame_bytes(level, hidden_size=hidden, num_rows=n) for n in rows)


def _chunk_rows(num_tokens: int, chunk: int) -> list[int]:
    return [rows for rows, starts in chunk_runs(num_tokens, chunk) for _ in starts]
