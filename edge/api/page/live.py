"""What an answer has cost so far, as a `splitpoint` field of its stream's chunks.

A client asks for it with `stream_options: {"include_splitpoint": true}`. Each chunk then has the
frames that were answered since the chunk before, and the times of the tokens that they brought.
"""

from __future__ import annotations

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
    """Adds the figures of one answer to its chunks. Ours; the names are those of StepTrace.

    The generation's thread appends to the run's lists while this reads them. A chunk tells of what
    was there when it was made, and the next chunk goes on from there.
    """

    def __init__(self, run: CompletionRun) -> None:
        self._run = run
        self._num_steps = 0
        self._num_tokens = 0

    def added_to(self, event: dict[str, Any]) -> dict[str, Any]:
        """The chunk with a `splitpoint` field; an error's event stays as it is.

        The field has `steps` (see STEP_FIELDS), `token_times_s` (seconds since the call, of the
        tokens since the last chunk), and `kv_tokens`: positions in the KV caches after the last
        step. A field that the chunk has already keeps its entries.
        """
        if "error" in event:
            return event
        steps = self._run.steps_since(self._num_steps)
        times_s = self._run.token_times_since(self._num_tokens)
        self._num_steps += len(steps)
        self._num_tokens += len(times_s)
        figures: dict[str, Any] = {
            "steps": [_shown(step) for step in steps],
            "token_times_s": list(times_s),
        }
        if steps:
            figures["kv_tokens"] = steps[-1].first_position + steps[-1].num_rows
        return {**event, "splitpoint": {**event.get("splitpoint", {}), **figures}}


def _shown(step: StepTrace) -> dict[str, Any]:
    return {name: getattr(step, name) for name in STEP_FIELDS}
