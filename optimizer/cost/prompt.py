"""A prompt on its way through device, link and server, with its first tokens as ids or all as rows.

A prompt of P tokens sends its first n as token ids and the rest as rows (`optimizer.policy.
prefill_place` says why). Ids leave at once and the server runs all layers on them. The device
computes them too, for its own cache, and then the rows, chunk by chunk:

    edge   -                       fill of n, first chunk | second chunk | ...
    link   ids                     first chunk            | second chunk | ...
    cloud  ids through all layers  first chunk's back     | ...

Each stage takes one of these at a time (`pipeline_s`). n is the policy's number, from what each
stage costs a token here. The server cuts a frame of ids into batches of `IDS_A_BATCH` rows, the
limit of its scheduler. Source: ours.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hwprofiles.profiles.rates import Floats
from optimizer.cost.cloud import sample_s
from optimizer.cost.codec import decode_s, encode_s, frame_bytes
from optimizer.cost.edge import chunk_runs, front_prefill
from optimizer.cost.link import transfer_s
from optimizer.cost.round_trip import (
    PromptChunks,
    first_answer_s,
    first_token_terms,
    prompt_stages_s,
    queue_s,
    stage_terms,
)
from optimizer.cost.setting import RequestSetting
from optimizer.cost.uncertainty import Terms, term_errors
from optimizer.policy.batching import Scheduler
from optimizer.policy.prefill_place import PrefillCosts, num_ids
from protos import sizes
from protos.limits import MAX_FRAME_TOKENS

IDS_A_BATCH: Final = Scheduler().max_rows


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
    return weighed_prefill(
        setting, num_tokens=num_tokens, batch=batch, connected_s=connected_s
    ).seconds


class WeighedPrefill(NamedTuple):
    """Seconds of a prompt, and what they depend on."""

    seconds: float
    terms: Terms


def weighed_prefill(
    setting: RequestSetting, *, num_tokens: int, batch: int = 1, connected_s: float = 0.0
) -> WeighedPrefill:
    """`prefill_s`, and the weights of its terms."""
    drawer = setting.edge if setting.is_whole else setting.cloud
    drawn_s = sample_s(drawer, setting.geometry, num_logits=1)
    if setting.is_whole:
        seconds = float(front_prefill_s(setting, num_tokens).sum()) + drawn_s
        return WeighedPrefill(seconds, Terms(edge=seconds))
    as_ids = prompt_ids(setting, num_tokens=num_tokens, batch=batch)
    chunks = prompt_chunks(setting, num_tokens=num_tokens, num_ids=as_ids, batch=batch)
    stages_s = float(prompt_stages_s(chunks, setting.link, connected_s=connected_s))
    errors = term_errors(setting.edge, setting.cloud, setting.link, kind="many_rows", batch=batch)
    terms = first_token_terms(
        stage_terms(chunks, setting.link, errors, connected_s=connected_s),
        setting.link,
        sample_s=drawn_s,
        stack_s=setting.stack_s,
        is_whole=0.0,
    )
    return WeighedPrefill(stages_s + _answer_s(setting), terms)


def prompt_ids(setting: RequestSetting, *, num_tokens: int, batch: int = 1) -> int:
    """How many first tokens of a prompt go as ids, by the policy that the device follows."""
    place = setting.prompt_place
    costs = None
    if place == "both":
        costs = prefill_costs(setting, num_tokens=num_tokens, batch=batch)
    return num_ids(place, num_tokens, costs)


def prefill_costs(setting: RequestSetting, *, num_tokens: int, batch: int = 1) -> PrefillCosts:
    """What each stage costs a token of this prompt: what a device learns from such prompts.

    `below_s` is negative where rows cost the server more than ids, because they come in many small
    steps.
    """
    rows = prompt_chunks(setting, num_tokens=num_tokens, batch=batch)
    ids = prompt_chunks(setting, num_tokens=num_tokens, num_ids=num_tokens, batch=batch)
    back_s = float(rows.cloud_s.sum()) / num_tokens
    up = setting.link.up_bytes_per_s
    return PrefillCosts(
        round_trip_s=_answer_s(setting) + float(transfer_s(ids.frame_bytes.sum(), up)),
        edge_s=float(rows.edge_s.sum()) / num_tokens,
        link_s=float(transfer_s(rows.frame_bytes.sum(), up)) / num_tokens,
        below_s=float(ids.cloud_s.sum()) / num_tokens - back_s,
        back_s=back_s,
        chunk_tokens=setting.chunk,
    )


def prompt_chunks(
    setting: RequestSetting, *, num_tokens: int, num_ids: int = 0, batch: int = 1
) -> PromptChunks:
    """Seconds in each stage and bytes of every frame of a prompt, [N]: of ids first, then of
    rows. The server has to be needed: the device is not whole."""
    rows = chunk_rows(num_tokens - num_ids, setting.chunk)
    level, hidden = setting.level.of_prompt, setting.geometry.hidden_size
    encoding_s = np.array([encode_s(level, hidden_size=hidden, num_rows=n) for n in rows])
    decoding_s = np.array([decode_s(level, hidden_size=hidden, num_rows=n) for n in rows])
    back_s = _chunk_backs(setting, num_tokens, num_ids, batch)
    front_s = front_prefill_s(setting, num_tokens, first=num_ids)
    if num_ids and rows:
        front_s[0] += float(front_prefill_s(setting, num_ids).sum())
    ids = id_frames(num_ids)
    ids_s = [_ids_s(setting, num_tokens, start, n, batch) for n, start in ids]
    return PromptChunks(
        edge_s=np.concatenate([np.zeros(len(ids)), front_s + encoding_s]),
        cloud_s=np.concatenate([ids_s, queue_s(back_s, batch) + decoding_s + back_s]),
        frame_bytes=np.array(
            id_frame_bytes(num_tokens, num_ids)
            + [frame_bytes(level, hidden_size=hidden, num_rows=n) for n in rows],
            dtype=np.float64,
        ),
    )


def id_frames(num_ids: int) -> list[tuple[int, int]]:
    """Tokens and first position of each frame of ids of a prompt."""
    return [
        (rows, start) for rows, starts in chunk_runs(num_ids, MAX_FRAME_TOKENS) for start in starts
    ]


def id_frame_bytes(num_tokens: int, num_ids: int) -> list[int]:
    """Bytes on the wire of each frame of ids of a prompt."""
    return [
        sizes.token_frame_bytes(
            rows, sequence=number, first_position=start, want_token=start + rows == num_tokens
        )
        for number, (rows, start) in enumerate(id_frames(num_ids))
    ]


def all_ids_s(setting: RequestSetting, *, num_tokens: int) -> float:
    """The server's seconds for all layers of `num_tokens` tokens that come as ids."""
    ids = prompt_chunks(setting, num_tokens=num_tokens, num_ids=num_tokens)
    return float(ids.cloud_s.sum())


def cloud_prefill_s(setting: RequestSetting, *, num_tokens: int, batch: int = 1) -> float:
    """Seconds that a prompt alone keeps the server busy: decoding, its layers, one row of logits.

    batch: the sessions that the policy counts on.
    """
    as_ids = prompt_ids(setting, num_tokens=num_tokens, batch=batch)
    chunks = prompt_chunks(setting, num_tokens=num_tokens, num_ids=as_ids)
    return sample_s(setting.cloud, setting.geometry, num_logits=1) + float(chunks.cloud_s.sum())


def prompt_bytes(setting: RequestSetting, *, num_tokens: int, batch: int = 1) -> int:
    """Bytes of a prompt's frames on the wire."""
    as_ids = prompt_ids(setting, num_tokens=num_tokens, batch=batch)
    chunks = prompt_chunks(setting, num_tokens=num_tokens, num_ids=as_ids, batch=batch)
    return int(chunks.frame_bytes.sum())


def front_prefill_s(setting: RequestSetting, num_tokens: int, *, first: int = 0) -> Floats:
    """Seconds of the front for each chunk of a prompt from token `first` on, [N]."""
    return front_prefill(
        setting.edge,
        setting.geometry,
        split=setting.partition.split,
        weight_bits=setting.partition.front_bits,
        kv_bits=setting.kv_bits,
        num_tokens=num_tokens,
        chunk=setting.chunk,
        exact=setting.exact_front,
        layer_bits=setting.front_layer_bits,
        first=first,
        reading_s=setting.reading_s,
    )


def chunk_rows(num_tokens: int, chunk: int) -> list[int]:
    """Rows of each chunk of a prompt."""
    return [rows for rows, starts in chunk_runs(num_tokens, chunk) for _ in starts]


def _chunk_backs(setting: RequestSetting, num_tokens: int, first: int, batch: int) -> Floats:
    """Seconds of the back for each chunk of a prompt from token `first` on, [N]. The last chunk
    alone makes logits."""
    back = setting.back
    parts = [
        np.broadcast_to(
            back.shared_step_s(
                num_rows=rows,
                position=first + np.array(starts, dtype=np.float64),
                num_logits=int(first + starts[-1] + rows == num_tokens),
                batch=batch,
            ),
            len(starts),
        )
        for rows, starts in chunk_runs(num_tokens - first, setting.chunk)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _ids_s(
    setting: RequestSetting, num_tokens: int, position: int, num_rows: int, batch: int
) -> float:
    """The server's seconds for one frame of ids, waiting included."""
    total = 0.0
    for rows, starts in chunk_runs(num_rows, IDS_A_BATCH):
        for start in starts:
            stop = position + start + rows
            step_s = setting.all_layers.shared_step_s(
                num_rows=rows,
                position=float(position + start),
                num_logits=int(stop == num_tokens),
                batch=batch,
                others_skip=setting.partition.split,
            )
            total += float(step_s + queue_s(step_s, batch))
    return total


def _answer_s(setting: RequestSetting) -> float:
    sampled = sample_s(setting.cloud, setting.geometry, num_logits=1)
    return first_answer_s(setting.link, sample_s=sampled, stack_s=setting.stack_s)
