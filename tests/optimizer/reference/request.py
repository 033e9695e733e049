"""One request, one value at a time: what `optimizer.cost.request` and the search must equal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Partition
from optimizer.cost.cloud import SessionRows, back_kv_bits
from optimizer.cost.codec import LevelCost, answer_bytes, decode_s, encode_s, frame_bytes
from optimizer.cost.link import LinkPoint
from tests.optimizer.reference.cloud import back_step_s, sample_s
from tests.optimizer.reference.edge import front_prefill, front_step

# Round trips before a request's first chunk leaves: Open and Opened on a connection that stands;
# on a new one TCP's, TLS 1.3's and that of HTTP/2's settings (RFC 9113, section 3.4: the server's
# follow its accepting, and gRPC sends nothing before they are there) come first. Counted on the
# real edge over the link emulator, docs/results/simulator.md.
OPEN_ROUND_TRIPS = 0.0
NEW_CONNECTION_ROUND_TRIPS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestParts:
    """Seconds of one round trip, in the order in which they pass.

    `up_s` and `down_s` are half the link's round trip, the message at the link's rate, and half of
    what both sides' network stacks take. `queue_s` is waiting for a place in the server's batch.
    """

    front_s: float = 0.0
    encode_s: float = 0.0
    up_s: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    back_s: float = 0.0
    sample_s: float = 0.0
    down_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The sum of the parts."""
        return math.fsum(getattr(self, part.name) for part in fields(self))

    @property
    def cloud_s(self) -> float:
        """What keeps the server busy: decoding, the back and sampling."""
        return self.decode_s + self.back_s + self.sample_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """How a round guesses: `num_drafts` guesses that take `draft_s` to make, after which a round
    brings `tokens_per_round` tokens on average (1: none was right)."""

    num_drafts: int
    tokens_per_round: float
    draft_s: float = 0.0


NO_DRAFTS = Drafting(num_drafts=0, tokens_per_round=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTime:
    """A request's prediction. `round_parts` is one decoding round in the middle of the answer;
    `tbt_s` is its total over the tokens it brings."""

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


def round_parts(
    deployment: Deployment,
    *,
    position: int,
    num_rows: int = 1,
    num_logits: int | None = None,
    batch: int = 1,
    queue_s: float | None = None,
    num_answers: float = 1.0,
) -> RequestParts:
    """One round trip of `num_rows` rows with `position` tokens cached before them.

    `batch` sessions like this one share the server's steps. `queue_s`: waiting for a place; by
    default half a step when others are there (on average the running batch is half done), none
    alone. `num_logits` (all rows unless given) rows go through the head; `num_answers` tokens come
    back. Infinite over a dead link.
    """
    geometry, hidden = deployment.geometry, deployment.geometry.hidden_size
    front = front_step(
        deployment.edge,
        geometry,
        split=deployment.partition.split,
        weight_bits=deployment.partition.front_bits,
        kv_bits=deployment.kv_bits,
        num_rows=1,
        position=position + (num_rows - 1) // 2,
        exact=deployment.exact_front,
        layer_bits=deployment.front_layer_bits,
    ).total_s
    front *= num_rows  # drafts are computed one by one
    power = deployment.edge.power
    if power is not None and power.sustained is not None:  # a step as it lasts for minutes
        rates = power.sustained.peak_steps_per_s, power.sustained.sustained_steps_per_s
        front *= max(1.0, rates[0] / rates[1])
    if deployment.is_whole:
        return RequestParts(
            front_s=front, sample_s=sample_s(deployment.edge, geometry, num_logits=1)
        )
    logits = num_rows if num_logits is None else num_logits
    back = _back_s(deployment, num_rows, position, logits, batch)
    front = _after_pause(deployment.edge, front)
    if batch == 1:  # a server with others to serve does not wait
        back = _after_pause(deployment.cloud, back)
    stack_s, link = message_s(deployment), deployment.link
    num_bytes = frame_bytes(deployment.level, hidden_size=hidden, num_rows=num_rows)
    answer = answer_bytes(num_answers)
    return RequestParts(
        front_s=front,
        encode_s=encode_s(deployment.level, hidden_size=hidden, num_rows=num_rows),
        up_s=link.rtt_s / 2 + _seconds(num_bytes, link.up_bytes_per_s) + stack_s / 2,
        queue_s=(back / 2 if batch > 1 else 0.0) if queue_s is None else queue_s,
        decode_s=decode_s(deployment.level, hidden_size=hidden, num_rows=num_rows),
        back_s=back,
        sample_s=sample_s(deployment.cloud, geometry, num_logits=logits),
        down_s=link.rtt_s / 2 + _seconds(answer, link.down_bytes_per_s) + stack_s / 2,
    )


def _after_pause(device: DeviceProfile, seconds: float) -> float:
    """A step after waiting for the other side: longer by seconds; in older files, by a factor."""
    longer, times = device.overheads.pause_s, device.overheads.after_pause
    if longer is not None:
        return seconds + longer.value * longer.efficiency
    return seconds if times is None else seconds * max(1.0, times.value * times.efficiency)


def prefill_s(
    deployment: Deployment,
    *,
    num_tokens: int,
    batch: int = 1,
    queue_s: float | None = None,
    connected_s: float = 0.0,
) -> float:
    """Seconds from the first chunk's start to the first token at the edge; `connected_s`: when the
    connection stands, over which chunks leave.

    Chunks go through front and encoder, the uplink, and decoder and back, each stage one chunk at
    a time; the last chunk's logits then make the token. With others on the server (`batch`), every
    chunk shares its step with their decode rows and waits `queue_s` for it (half a step unless
    given; a pipeline stage's start, so it adds up only while the cloud is the slowest stage).
    """
    chunk = deployment.chunk
    front = front_prefill(
        deployment.edge,
        deployment.geometry,
        split=deployment.partition.split,
        weight_bits=deployment.partition.front_bits,
        kv_bits=deployment.kv_bits,
        num_tokens=num_tokens,
        chunk=chunk,
        exact=deployment.exact_front,
        layer_bits=deployment.front_layer_bits,
    )
    if deployment.is_whole:
        return sum(front) + sample_s(deployment.edge, deployment.geometry, num_logits=1)
    edge, wire, cloud = [], [], []
    level, hidden = deployment.level.of_prompt, deployment.geometry.hidden_size
    for index, seconds in enumerate(front):
        start = index * chunk
        rows = min(chunk, num_tokens - start)
        is_last = start + rows == num_tokens
        num_bytes = frame_bytes(level, hidden_size=hidden, num_rows=rows)
        edge.append(seconds + encode_s(level, hidden_size=hidden, num_rows=rows))
        wire.append(_seconds(num_bytes, deployment.link.up_bytes_per_s))
        back = _back_s(deployment, rows, start, int(is_last), batch)
        wait = (back / 2 if batch > 1 else 0.0) if queue_s is None else queue_s
        cloud.append(wait + decode_s(level, hidden_size=hidden, num_rows=rows) + back)
    answer = _seconds(answer_bytes(1), deployment.link.down_bytes_per_s)
    sampled = sample_s(deployment.cloud, deployment.geometry, num_logits=1)
    stages = pipeline_s(tuple(edge), tuple(wire), tuple(cloud), connected_s)
    return stages + sampled + answer + deployment.link.rtt_s + message_s(deployment)


def predict_request(
    deployment: Deployment,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int = 1,
    queue_s: float | None = None,
    drafting: Drafting = NO_DRAFTS,
    open_round_trips: float = OPEN_ROUND_TRIPS,
) -> RequestTime:
    """TTFT, TBT and what they are made of, for one request of `prompt_tokens` and `new_tokens`.

    `open_round_trips` are spent before the first chunk leaves: OPEN_ROUND_TRIPS in a client's later
    requests, NEW_CONNECTION_ROUND_TRIPS in its first (one fewer without TLS); none when the edge
    holds the whole model. Meanwhile the front computes chunks. The round in the middle of
    the answer stands for all: step time is linear in the position.
    """
    whole = deployment.is_whole
    opened = 0.0 if whole else open_round_trips * (deployment.link.rtt_s + message_s(deployment))
    ttft = prefill_s(
        deployment, num_tokens=prompt_tokens, batch=batch, queue_s=queue_s, connected_s=opened
    )
    rows = 1 + (0 if whole else drafting.num_drafts)
    tokens_per_round = 1.0 if whole else drafting.tokens_per_round
    parts = round_parts(
        deployment,
        position=prompt_tokens + max(new_tokens - 1, 0) // 2,
        num_rows=rows,
        batch=batch,
        queue_s=queue_s,
        num_answers=tokens_per_round,
    )
    draft = 0.0 if whole else drafting.draft_s
    tbt = (draft + parts.total_s) / tokens_per_round
    hidden, level = deployment.geometry.hidden_size, deployment.level
    sizes = _chunk_rows(prompt_tokens, deployment.chunk)
    rounds = max(new_tokens - 1, 0) / tokens_per_round
    prompt_bytes = sum(frame_bytes(level.of_prompt, hidden_size=hidden, num_rows=n) for n in sizes)
    round_bytes = frame_bytes(level, hidden_size=hidden, num_rows=rows)
    cloud = 0.0 if whole else cloud_prefill_s(deployment, num_tokens=prompt_tokens)
    cloud += 0.0 if whole else rounds * parts.cloud_s / batch
    uplink = 0.0 if whole else prompt_bytes + rounds * round_bytes
    return RequestTime(
        ttft_s=ttft,
        open_s=opened,
        prefill_s=ttft - opened,
        round_parts=parts,
        tbt_s=tbt,
        total_s=ttft + max(new_tokens - 1, 0) * tbt,
        uplink_bytes=uplink,
        uplink_bytes_per_token=0.0 if whole else round_bytes / tokens_per_round,
        cloud_s=cloud,
        cloud_s_per_token=0.0 if whole else parts.cloud_s / batch / tokens_per_round,
    )


def cloud_prefill_s(deployment: Deployment, *, num_tokens: int) -> float:
    """Seconds that a prompt keeps the server busy: decoding, the back, one row of logits."""
    sizes = _chunk_rows(num_tokens, deployment.chunk)
    level, hidden = deployment.level, deployment.geometry.hidden_size
    total = sample_s(deployment.cloud, deployment.geometry, num_logits=1)
    for index, rows in enumerate(sizes):
        is_last = index == len(sizes) - 1
        total += decode_s(level, hidden_size=hidden, num_rows=rows)
        total += _back_s(deployment, rows, index * deployment.chunk, int(is_last), 1)
    return total


def message_s(deployment: Deployment) -> float:
    """What both sides' network stacks add to a round trip, where they were measured."""
    found = (device.overheads.message_s for device in (deployment.edge, deployment.cloud))
    return sum(figure.effective for figure in found if figure is not None)


def _back_s(
    deployment: Deployment, num_rows: int, position: int, num_logits: int, batch: int
) -> float:
    """One step of the back for `num_rows` rows of ours, and one row of each of the others."""
    others: Sequence[SessionRows] = [SessionRows(1, position)] * (batch - 1)
    if num_logits == num_rows:  # everybody decodes as we do
        others = [SessionRows(num_rows, position)] * (batch - 1)
    return back_step_s(
        deployment.cloud,
        deployment.geometry,
        num_layers=deployment.geometry.num_layers - deployment.partition.split,
        back_bits=deployment.partition.back_bits,
        kv_bits=back_kv_bits(deployment.cloud, deployment.partition.back_bits),
        sessions=[SessionRows(num_rows, position), *others],
        num_logits=num_logits + sum(other.num_rows for other in others),
    )


def _chunk_rows(num_tokens: int, chunk: int) -> list[int]:
    return [min(chunk, num_tokens - start) for start in range(0, num_tokens, chunk)]


def _seconds(num_bytes: float, bytes_per_s: float) -> float:
    return num_bytes / bytes_per_s if bytes_per_s > 0 else math.inf


def pipeline_s(
    front: tuple[float, ...], wire: tuple[float, ...], back: tuple[float, ...], connected_s: float
) -> float:
    """A permutation flow shop of three stages, by its recurrence; the second is late."""
    done_front = done_back = 0.0
    done_wire = connected_s
    for edge_s, wire_s, cloud_s in zip(front, wire, back, strict=True):
        done_front += edge_s
        done_wire = max(done_wire, done_front) + wire_s
        done_back = max(done_back, done_wire) + cloud_s
    return done_back
