"""Training of the cloud's head: it distils the model over several of its own steps.

The loss of pass j at a position is KL(p || q) over the head's tokens, p being the model's own
distribution from its state there (arXiv:1503.02531), and a small smooth-L1 term between the states
(EAGLE, arXiv:2401.15077, section 4.2). Later passes count less, since fewer guesses come that far.
The best epoch is kept: the one with the most tokens a round on what was held out.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from optimizer.errors import BuildError
from optimizer.export.cloud_head.corpus import PassageRef
from optimizer.export.cloud_head.head import CloudHead
from optimizer.export.draft_head.learning_rate import learning_rate_factor

Progress = Callable[[str, int, int], None]
# From token ids [B, T] to what enters layer 0, float32 [B, T, D].
Embed = Callable[[Tensor], Tensor]

DEFAULT_LR: Final = 3e-4
STATE_WEIGHT: Final = 0.1
PASS_WEIGHT: Final = 0.8  # of a pass, beside the one before it


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudTrainOptions:
    """How to train. batch: passages a step. passes: steps over own states. lr: of AdamW."""

    epochs: int = 6
    batch: int = 2
    lr: float = DEFAULT_LR
    weight_decay: float = 0.01
    passes: int = 3
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthScore:
    """How well a head guesses. by_depth: share of positions where guess d is the token that came,
    of those where all guesses before it were. tokens_a_round: what a round of so many guesses
    brings, 1 to passes + 1."""

    num_positions: int
    by_depth: tuple[float, ...]

    @property
    def tokens_a_round(self) -> float:
        """1 + a_1 + a_1 a_2 + ..."""
        return 1.0 + float(np.cumprod(self.by_depth).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    states: Tensor  # [B, T, D]
    token_ids: Tensor  # int64 [B, T + 1]
    lengths: Tensor  # int64 [B], T of each


def train_cloud_head(
    head: CloudHead,
    train_on: Sequence[PassageRef],
    held_out: Sequence[PassageRef],
    embed: Embed,
    options: CloudTrainOptions,
    *,
    checkpoint: Path,
    progress: Progress,
) -> tuple[DepthScore, list[DepthScore]]:
    """Train `head` in place, from `checkpoint` on if that exists, and leave it at its best epoch.

    Returns the best score on `held_out`, and the scores of all epochs.
    """
    if not train_on or not held_out:
        raise BuildError("the corpus is too small to hold anything out: ask for more tokens")
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)
    state: dict[str, Any] = {"epochs": 0, "by_depth": [], "best": None}
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=options.device)
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
    head.to(options.device)
    batches = math.ceil(len(train_on) / options.batch)
    total = options.epochs * batches
    scores = [DepthScore(num_positions=n, by_depth=tuple(d)) for n, d in state["by_depth"]]
    for epoch in range(state["epochs"], options.epochs):
        for index, batch in enumerate(_batches(train_on, options, epoch)):
            step = epoch * batches + index
            for group in optimizer.param_groups:
                group["lr"] = options.lr * learning_rate_factor(step / total)
            loss = _loss(head, batch, embed, options.passes)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            progress("training", step + 1, total)
        scores.append(score_depths(head, held_out, embed, options))
        best = max(scores, key=lambda score: score.tokens_a_round)
        state = {
            "head": head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epochs": epoch + 1,
            "by_depth": [(score.num_positions, list(score.by_depth)) for score in scores],
            "best": copy.deepcopy(head.state_dict()) if best is scores[-1] else state["best"],
        }
        unfinished = checkpoint.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, checkpoint)  # whole or not at all: a later run reads it
    head.load_state_dict(state["best"])
    return max(scores, key=lambda score: score.tokens_a_round), scores


@torch.no_grad()
def score_depths(
    head: CloudHead, passages: Sequence[PassageRef], embed: Embed, options: CloudTrainOptions
) -> DepthScore:
    """How often the head's guesses are the tokens that came, by depth."""
    reached = np.zeros(options.passes)
    counts = np.zeros(options.passes)
    for batch in _batches(passages, options, epoch=None):
        alive: Tensor | None = None
        for step, own in enumerate(_passes(head, batch, embed, options.passes)):
            came, is_there = _shifted(batch, step)
            right = (head.tokens[head.logits(own).argmax(-1)] == came) & is_there
            asked = is_there if alive is None else alive & is_there
            alive = right & asked
            counts[step] += int(asked.sum())
            reached[step] += int(alive.sum())
    shares = tuple((reached / np.maximum(counts, 1)).tolist())
    return DepthScore(num_positions=int(counts[0]), by_depth=shares)


def _passes(head: CloudHead, batch: _Batch, embed: Embed, count: int) -> list[Tensor]:
    behind = F.pad(batch.token_ids[:, 1:], (0, count))
    return head.passes(batch.states, embed(behind).to(batch.states.device), count)


def _shifted(batch: _Batch, step: int) -> tuple[Tensor, Tensor]:
    """The token [B, T] that pass `step` has to guess at each index, and where there is one."""
    length = batch.states.shape[1]
    came = F.pad(batch.token_ids, (0, step + 1))[:, step + 2 : step + 2 + length]
    came = F.pad(came, (0, length - came.shape[1]))
    index = torch.arange(length, device=came.device)
    return came, index[None] + step + 2 <= batch.lengths[:, None]


def _loss(head: CloudHead, batch: _Batch, embed: Embed, count: int) -> Tensor:
    with torch.no_grad():
        target = head.logits(batch.states).log_softmax(-1)
    length = batch.states.shape[1]
    index = torch.arange(length, device=target.device)
    total = batch.states.new_zeros(())
    for step, own in enumerate(_passes(head, batch, embed, count)):
        ahead = step + 1  # this pass predicts the state so far ahead
        is_there = index[None] + ahead < batch.lengths[:, None]
        rows = is_there[:, : length - ahead]
        guessed = own[:, : length - ahead][rows]
        wanted = target[:, ahead:][rows]
        kl = F.kl_div(
            head.logits(guessed).log_softmax(-1), wanted, log_target=True, reduction="batchmean"
        )
        states = F.smooth_l1_loss(guessed, batch.states[:, ahead:][rows])
        total = total + PASS_WEIGHT**step * (kl + STATE_WEIGHT * states)
    return total


def _batches(
    passages: Sequence[PassageRef], options: CloudTrainOptions, epoch: int | None
) -> Iterator[_Batch]:
    """Passages of about one length together, in another order each epoch; None: in order."""
    order = sorted(range(len(passages)), key=lambda at: len(passages[at].token_ids))
    groups = [order[at : at + options.batch] for at in range(0, len(order), options.batch)]
    if epoch is not None:
        np.random.default_rng(options.seed + epoch).shuffle(groups)
    for group in groups:
        chosen = [passages[at] for at in group]
        longest = max(len(one.states) for one in chosen)
        states = torch.zeros(len(chosen), longest, chosen[0].states.shape[1])
        token_ids = torch.zeros(len(chosen), longest + 1, dtype=torch.int64)
        for row, one in enumerate(chosen):
            states[row, : len(one.states)] = torch.from_numpy(one.states[:]).float()
            token_ids[row, : len(one.token_ids)] = torch.from_numpy(one.token_ids)
        yield _Batch(
            states=states.to(options.device),
            token_ids=token_ids.to(options.device),
            lengths=torch.tensor([len(one.states) for one in chosen], device=options.device),
        )
