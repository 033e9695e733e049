"""The tokens of a frame whose rows have run: drawn here from logits, or on the device before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cloud.engine.drawing import Drawn
from cloud.engine.frame_work import FrameWork
from cloud.engine.launches import Answered
from cloud.errors import BadFrameError
from decoding.errors import GrammarError
from decoding.params import SamplingParams
from decoding.penalties import TokenMask
from decoding.sampler import Sampled, accepted, verify


def chosen_tokens(
    work: FrameWork,
    answer: Answered,
    sampling: SamplingParams,
    *,
    position: int,
    seen: Sequence[int],
    num_prompt: int,
) -> list[Sampled]:
    """Accepted drafts and one token more (`decoding.sampler.verify`, whose arguments these are).

    Raises BadFrameError where the frame's drafts do not fit its grammar.
    """
    frame = work.frame
    drafts = frame.token_ids[len(frame.token_ids) - frame.num_drafts :]
    if isinstance(answer, Drawn):
        return accepted(answer.token_ids, drafts)
    return verify(
        answer,
        drafts,
        sampling,
        position=position,
        seen=seen,
        num_prompt=num_prompt,
        masks=_masks_of(work),
    )


def is_finite(answer: Answered) -> bool:
    """Whether all numbers behind an answer lie within float32's range."""
    return answer.is_finite if isinstance(answer, Drawn) else bool(np.isfinite(answer).all())


def _masks_of(work: FrameWork) -> list[TokenMask] | None:
    """What the grammar allows at each row; None without one. Raises BadFrameError."""
    if work.masks is None:
        return None
    try:
        return work.masks.result()
    except GrammarError as error:
        raise BadFrameError(f"frame {work.frame.sequence}: {error}") from error
