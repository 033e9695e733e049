"""What an answer has cost so far, as a `splitpoint` field of its stream's chunks.

A client asks for it with `stream_options: {"include_splitpoint": true}`. Each chunk then has the
frames that were answered since the chunk before, and the times of the tokens that they brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edge.generation.completion import CompletionRun
from edge.step_trace import StepTrace

# The fields of a step that the stream shows. None of them says what the text is.
STEP_FIELDS: Final = (
    "sequence",
    "phase",
    "num_rows",
    "num_drafts",
    "num_new_tokens",
    "level",
    "front_s",
    "encode_s",
    "round_trip_s",
    "wire_s",
    "cloud_codec_s",
    "cloud_queue_s",
    "cloud_compute_s",
    "cloud_sample_s",
    "batch_sessions",
    "uplink_bytes",
    "downlink_bytes",
    "decision",
    "ahead",
)


class LiveFigures:
    """Adds the figures of a request's answers to its chunks. Ours; names are those of StepTrace.

    runs: the answers, which are made one after the other. The generation's thread appends to their
    lists while this reads them. A chunk tells of what was there when it was made, and the next
    chunk goes on from there.
    """

    def __init__(self, runs: Sequence[CompletionRun]) -> None:
        self._runs = tuple(runs)
        self._num_steps = [0] * len(self._runs)
        self._num_tokens = [0] * len(self._runs)

    def added_to(self, event: dict[str, Any]) -> dict[str, Any]:
        """The chunk with a `splitpoint` field; an error's event stays as it is.

        The field has `steps` (see STEP_FIELDS), `token_times_s` (seconds since the call, of the
        tokens since the last chunk), and `kv_tokens`: positions in the KV caches after the last
        step. A field that the chunk has already keeps its entries.
        """
        if "error" in event:
            return event
        steps: list[StepTrace] = []
        times_s: list[float] = []
        for index, run in enumerate(self._runs):
            new_steps = run.steps_since(self._num_steps[index])
            new_times = run.token_times_since(self._num_tokens[index])
            self._num_steps[index] += len(new_steps)
            self._num_tokens[index] += len(new_times)
            steps += new_steps
            times_s += new_times
        figures: dict[str, Any] = {
            "steps": [_shown(step) for step in steps],
            "token_times_s": times_s,
        }
        if steps:
            figures["kv_tokens"] = steps[-1].first_position + steps[-1].num_rows
        return {**event, "splitpoint": {**event.get("splitpoint", {}), **figures}}


def _shown(step: StepTrace) -> dict[str, Any]:
    return {name: getattr(step, name) for name in STEP_FIELDS}
