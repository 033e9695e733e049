"""Training of the draft head: it distils the whole model into what the device has at the split.

The loss of a position is KL(p || q) over the head's tokens, where p is the model's own distribution
from its final state (Hinton et al. 2015, arXiv:1503.02531, at temperature 1). A small smooth-L1
term between the states is added (EAGLE, arXiv:2401.15077, section 4.2). Where the head does not
know the next token, the position still teaches the shares of the other tokens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from optimizer.export.draft_head.head import DraftHead, fit_linear
from optimizer.export.draft_head.learning_rate import learning_rate_factor
from optimizer.export.draft_head.stored_rows import HalfRows
from optimizer.export.layers.fast_linear import has_fast_bfloat16

DEFAULT_LR: Final = 1e-3
STATE_WEIGHT: Final = 0.1
_HEAD_ROWS: Final = 8192  # of the model's head, in one product
Progress = Callable[[str, int, int], None]  # stage, done, of how many
Tokens = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train.

    lr: learning rate of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). It falls to zero
    along a cosine. batch: in positions.
    """

    epochs: int = 6
    batch: int = 512
    lr: float = DEFAULT_LR
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Training pairs: rows of the front and final states of the model, float16 [N, D] each, and the
    model's likeliest token, int64 [N].

    Rows and states are arrays, or lie in files and are read a batch at a time.
    """

    rows: HalfRows
    states: HalfRows
    best: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutScore:
    """How well the head guesses on text that it was not trained on.

    top1: share of positions where its first guess is the model's likeliest token. sure: for each
    tenth of probability that occurs, (its lower end, share of positions, top1 there). by_epoch:
    top1 after each epoch of training.
    """

    num_positions: int
    top1: float
    sure: tuple[tuple[float, float, float], ...]
    by_epoch: tuple[float, ...] = ()


def train(
    head: DraftHead,
    train_on: Positions,
    held_out: Positions,
    options: TrainOptions,
    *,
    checkpoint: Path,
    progress: Progress,
) -> HeldOutScore:
    """Train `head` in place, from `checkpoint` on if that exists; returns its held-out score."""
    device = torch.device(options.device)
    done = 0
    by_epoch: list[float] = []
    if not checkpoint.is_file():
        fit_linear(head, train_on.rows, train_on.states)
    head.to(device)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in head.parameters() if parameter.requires_grad],
        lr=options.lr,
        weight_decay=options.weight_decay,
    )
    if checkpoint.is_file():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device)
        head.load_state_dict(saved["head"])
        optimizer.load_state_dict(saved["optimizer"])
        done = int(saved["epochs"])
        by_epoch = list(saved["by_epoch"])
    batches = math.ceil(len(train_on) / options.batch)
    total = options.epochs * batches
    for epoch in range(done, options.epochs):
        order = np.random.default_rng(options.seed + epoch).permutation(len(train_on))
        for index in range(batches):
            step = epoch * batches + index
            for group in optimizer.param_groups:
                group["lr"] = options.lr * learning_rate_factor(step / total)
            chosen = np.sort(order[index * options.batch : (index + 1) * options.batch])
            _step(head, optimizer, train_on, chosen, device)
            progress("training", step + 1, total)
        by_epoch.append(evaluate(head, held_out).top1)
        state = {
            "head": head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epochs": epoch + 1,
            "by_epoch": by_epoch,
        }
        unfinished = checkpoint.with_suffix(".part")
        torch.save(state, unfinished)
        os.replace(unfinished, checkpoint)  # whole or not at all: a later run reads it
    return replace(evaluate(head, held_out), by_epoch=tuple(by_epoch))


def evaluate(head: DraftHead, positions: Positions, batch: int = 1024) -> HeldOutScore:
    """The score of the head's own guesses."""

    def guesses(rows: npt.NDArray[np.float32]) -> tuple[Tokens, Probabilities]:
        with torch.no_grad():
            share, index = (
                head(torch.from_numpy(rows).to(head.embedding.device)).softmax(-1).max(-1)
            )
        return head.tokens[index].cpu().numpy(), share.float().cpu().numpy()

    return score_guesses(guesses, positions, batch)


def score_guesses(
    guesses: Callable[[npt.NDArray[np.float32]], tuple[Tokens, Probabilities]],
    positions: Positions,
    batch: int = 1024,
) -> HeldOutScore:
    """The score of any guesser: `guesses` takes rows [T, D] and gives its first choices [T] with
    their probabilities [T]."""
    hits: list[npt.NDArray[np.bool_]] = []
    sure: list[Probabilities] = []
    for begin in range(0, len(positions), batch):
        part = slice(begin, begin + batch)
        tokens, shares = guesses(positions.rows[part].astype(np.float32))
        hits.append(tokens == positions.best[part])
        sure.append(shares)
    hit, probability = np.concatenate(hits), np.concatenate(sure)
    tenth = np.minimum((10 * probability).astype(int), 9)
    bins = tuple(
        (value / 10, float((tenth == value).mean()), float(hit[tenth == value].mean()))
        for value in range(10)
        if (tenth == value).any()
    )
    return HeldOutScore(num_positions=len(hit), top1=float(hit.mean()), sure=bins)


def likeliest_tokens(states: HalfRows, embedding: Tensor, batch: int = 512) -> Tokens:
    """The likeliest token [N] of each final state [N, D]; embedding: the whole head [V, D].

    Computed in bfloat16 where that is fast, like training: where two tokens are that close, either
    is a good label. A part of the head is converted at a time.
    """
    kind = torch.bfloat16 if has_fast_bfloat16("cpu") else torch.float32
    found = [np.zeros(0, dtype=np.int64)]
    with torch.no_grad():
        for begin in range(0, len(states), batch):
            rows = torch.from_numpy(states[begin : begin + batch]).to(kind)
            highest = torch.full((len(rows),), -torch.inf, dtype=kind)
            best = torch.zeros(len(rows), dtype=torch.int64)
            for first in range(0, len(embedding), _HEAD_ROWS):
                part = embedding[first : first + _HEAD_ROWS].to(kind)
                values, ids = F.linear(rows, part).max(-1)
                better = values > highest  # of equal ones the first counts
                highest = torch.where(better, values, highest)
                best = torch.where(better, ids + first, best)
            found.append(best.numpy())
    return np.concatenate(found)


def _step(
    head: DraftHead,
    optimizer: torch.optim.Optimizer,
    positions: Positions,
    chosen: npt.NDArray[np.int64],
    device: torch.device,
) -> None:
    rows = torch.from_numpy(positions.rows[chosen]).float().to(device)
    states = torch.from_numpy(positions.states[chosen]).float().to(device)
    fast = has_fast_bfloat16(device.type)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast):
        guessed = head.states(rows)
        logits = F.linear(guessed, head.embedding)
        with torch.no_grad():
            target = F.linear(states, head.embedding)
    loss = F.kl_div(
        logits.float().log_softmax(-1),
        target.float().log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    loss = loss + STATE_WEIGHT * F.smooth_l1_loss(guessed.float(), states)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()
