"""What a generation cost: the summary that `run --json` prints, from the traces of its frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from decoding.scores import TokenScore, TopToken
from edge.generation.stopping import FinishReason
from edge.step_trace import LOCAL_LEVEL, StepTrace
from hwprofiles.peak_memory import peak_memory_bytes
from hwprofiles.sensors.energy import MeasuredEnergy


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished generation: the text, and where the time and the bytes went.

    `token_times_s` holds the arrival of every token, in seconds since the call. The first of them
    is the time to first token (TTFT). The differences are the times between tokens (TBT); tokens
    that came in one message arrive together. `finish_reason`: "stop", "length", "deadline",
    "server_lost" or "cancelled"; `finish_detail` says more where there is more to say.
    `steps`: the trace of every answered frame. `logprobs` is empty unless the request asked, and so
    are `top_logprobs` (the most likely tokens beside each token) and `prompt_logprobs` (one entry
    a prompt token; the first one is None, because nothing comes before it). `energy`: what a sensor
    of the device measured meanwhile, other programs included; None where nobody measured, or no
    sensor can be read.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    finish_detail: str
    num_prompt_tokens: int
    hidden_size: int
    token_times_s: tuple[float, ...]
    steps: tuple[StepTrace, ...]
    reconnects: int
    total_s: float
    top_logprobs: tuple[tuple[TopToken, ...], ...] = ()
    prompt_logprobs: tuple[TokenScore | None, ...] = ()
    shifts: int = 0  # how often the context was cut, see edge.generation.context
    moves: int = 0  # how often the split moved, see edge.generation.moving
    energy: MeasuredEnergy | None = None
    tables: str = ""
    tables_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def answered_by(self) -> str:
        """Who ran the layers for the last token: "edge", "split" or "cloud"; "" without one."""
        last = next((step for step in reversed(self.steps) if step.num_new_tokens), None)
        if last is None:
            return ""
        if last.level == LOCAL_LEVEL:
            return "edge"
        return "split" if last.hidden_bytes else "cloud"

    @property
    def ttft_s(self) -> float:
        """Seconds from the call to the first token; 0 when none came."""
        return self.token_times_s[0] if self.token_times_s else 0.0

    def tbt_quantile_s(self, quantile: float) -> float:
        """A quantile of the time between tokens, in seconds; 0 when fewer than two came."""
        gaps = np.diff(self.token_times_s)
        return float(np.quantile(gaps, quantile)) if gaps.size else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Decode throughput: tokens after the first over the time since the first."""
        if len(self.token_times_s) < 2:
            return 0.0
        span_s = self.token_times_s[-1] - self.token_times_s[0]
        return (len(self.token_times_s) - 1) / span_s if span_s > 0 else 0.0

    @property
    def bits_per_element(self) -> float:
        """Bits of codec frames, headers and all, for each hidden-state element sent."""
        num_rows = sum(step.num_rows for step in self.steps if step.hidden_bytes)
        num_elements = num_rows * self.hidden_size
        num_bytes = sum(step.hidden_bytes for step in self.steps)
        return 8 * num_bytes / num_elements if num_elements else 0.0

    @property
    def _id_steps(self) -> list[StepTrace]:
        """The prompt's frames that were token ids; those after the first token are a move's."""
        first = next((i for i, step in enumerate(self.steps) if step.num_new_tokens), -1)
        return [step for step in self.steps[: first + 1] if step.is_ids]

    def to_json(self) -> dict[str, Any]:
        """The object that `splitpoint run --json` prints. Seconds, bytes, tokens."""
        answered = [step for step in self.steps if step.num_new_tokens]
        # A frame that was sent ahead travels while another round trip is under way.
        num_trips = sum(not step.ahead for step in answered)
        return {
            "text": self.text,
            "tokens": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "finish_detail": self.finish_detail,
            "answered_by": self.answered_by,
            "prompt_tokens": self.num_prompt_tokens,
            "ttft_s": self.ttft_s,
            "tbt_p50_s": self.tbt_quantile_s(0.5),
            "tbt_p95_s": self.tbt_quantile_s(0.95),
            "tokens_per_s": self.tokens_per_s,
            "uplink_bytes": sum(step.uplink_bytes for step in self.steps),
            "downlink_bytes": sum(step.downlink_bytes for step in self.steps),
            "bits_per_element": self.bits_per_element,
            **({"tables": self.tables} if self.tables else {}),
            **({"tables_bytes": dict(self.tables_bytes)} if self.tables_bytes else {}),
            "prompt_ids": sum(step.num_rows for step in self._id_steps),
            "id_bytes": sum(step.uplink_bytes for step in self._id_steps),
            "round_trips": num_trips,
            "tokens_per_round_trip": len(self.token_ids) / num_trips if num_trips else 0.0,
            "drafts": draft_figures(self.steps),
            "edge_s": sum(step.edge_s for step in self.steps),
            # Chunks in flight wait for each other; only the last one's wait was anybody's.
            "wire_s": sum(step.wire_s for step in answered),
            "cloud_s": sum(step.cloud_s for step in self.steps),
            "reconnects": self.reconnects,
            "context_shifts": self.shifts,
            "split_moves": self.moves,
            **({"moves": moves_of(self.steps)} if self.moves else {}),
            "peak_memory_bytes": peak_memory_bytes(),
            "level_counts": dict(Counter(step.level for step in self.steps)),
            "total_s": self.total_s,
            **energy_figures(self.energy, len(self.token_ids)),
            **({"logprobs": list(self.logprobs)} if self.logprobs else {}),
            **({"top_logprobs": list(self.top_logprobs)} if self.top_logprobs else {}),
            **({"prompt_logprobs": list(self.prompt_logprobs)} if self.prompt_logprobs else {}),
        }


def energy_figures(energy: MeasuredEnergy | None, num_tokens: int) -> dict[str, Any]:
    """The device's energy during an answer: all None where it was not measured."""
    each = None if energy is None or not num_tokens else energy.joules / num_tokens
    return {
        "energy_joules": None if energy is None else energy.joules,
        "energy_joules_per_token": each,
        "energy_sensor": None if energy is None else energy.sensor,
        "energy_covers": None if energy is None else energy.covers,
    }


def draft_figures(steps: Sequence[StepTrace]) -> dict[str, float]:
    """What drafting did in the decode steps: counts, and tokens a frame, expected and measured.

    `sent` and `accepted` count guesses; a frame's first row is one when it was sent ahead. All
    over frames that brought tokens, but `frames_void`: sent ahead on a wrong guess.
    """
    decode = [step for step in steps if step.phase == "decode"]
    useful = [step for step in decode if step.num_new_tokens]
    count = len(useful)
    return {
        "sent": sum(step.num_drafts + step.ahead for step in useful),
        "accepted": sum(step.num_new_tokens - 1 + step.ahead for step in useful),
        "frames": count,
        "frames_ahead": sum(step.ahead for step in useful),
        "frames_void": len(decode) - count,
        "tokens_per_frame": sum(step.num_new_tokens for step in useful) / count if count else 0.0,
        "expected_tokens_per_frame": (
            sum(step.expected_tokens for step in useful) / count if count else 0.0
        ),
    }


def moves_of(steps: Sequence[StepTrace]) -> list[dict[str, Any]]:
    """Where the split moved: before which token of the answer, between which splits, and what it
    took until the next token: bytes up, and seconds of the cloud. `by`: what the cloud got, keys
    and values ("kv") or the tokens' ids."""
    found: list[dict[str, Any]] = []
    num_tokens = 0
    for before, step in zip([None, *steps], steps, strict=False):
        if before is not None and before.split != step.split:
            found.append(
                {
                    "at_token": num_tokens,
                    "from": before.split,
                    "to": step.split,
                    "by": "kv" if step.is_kv else "ids",
                    "uplink_bytes": 0,
                    "cloud_s": 0.0,
                }
            )
        if found and step.phase == "prefill":
            found[-1]["uplink_bytes"] += step.uplink_bytes
            found[-1]["cloud_s"] += step.cloud_s
        num_tokens += step.num_new_tokens
    return found


def breakdown(steps: Sequence[StepTrace], phase: str) -> dict[str, float]:
    """Mean seconds of each part of a frame of one phase; empty when there was none.

    Keys, in the order of a frame's life: front, encode, wire, cloud decode, queue, compute,
    sample.
    """
    chosen = [step for step in steps if step.phase == phase]
    if not chosen:
        return {}
    parts = {
        "front": [step.front_s for step in chosen],
        "encode": [step.encode_s for step in chosen],
        "wire": [step.wire_s for step in chosen],
        "cloud decode": [step.cloud_codec_s for step in chosen],
        "cloud queue": [step.cloud_queue_s for step in chosen],
        "cloud compute": [step.cloud_compute_s for step in chosen],
        "cloud sample": [step.cloud_sample_s for step in chosen],
    }
    return {name: float(np.mean(values)) for name, values in parts.items()}
