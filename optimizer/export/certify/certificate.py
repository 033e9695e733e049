"""Certify a ladder: how many bits each level takes, and what it does to the model's predictions.

The text is cut into windows of W tokens. The front's hidden state is encoded and decoded, the back
continues from the result, and its predictions are compared with those of the untouched model.
`LevelQuality` defines the metrics. The bundle stores the certificate as JSON; the planner reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from codec.ladder import Ladder
from optimizer.artifacts.bundle import record_files
from optimizer.errors import BuildError
from optimizer.export.calibration.hidden_states import back_logits, hidden_and_logits

Windows = npt.NDArray[np.int64]  # [N, W] token ids


class Coder(Protocol):
    """One way to send rows."""

    @property
    def name(self) -> str:
        """The name that its result gets."""

    def send(
        self, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], int]:
        """Send rows float32 [T, D] in one message; returns the rows that arrive and its bytes."""


@dataclass(frozen=True, slots=True)
class LadderCoder:
    """A level of a ladder as a Coder; every byte of the frame counts."""

    ladder: Ladder
    name: str

    def send(
        self, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], int]:
        """See Coder."""
        frame = self.ladder.encode(self.name, rows, token_ids)
        return self.ladder.decode(frame, num_rows=len(rows), token_ids=token_ids), len(frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelQuality:
    """One level's certificate.

    bits_per_element: 8 bytes(frame) / D over frames of one row, which decoding sends.
    bits_per_element_prefill: the same over frames of a whole window. Both include headers, scales,
    indices and checks. perplexity: exp of the mean negative log-likelihood of the text.
    perplexity_rise_pct: 100 (perplexity / baseline - 1), with its standard error over tokens. kl:
    mean over positions of KL(untouched || level), in nats. top1_agreement: share of positions where
    both predict the same token.
    """

    name: str
    bits_per_element: float
    bits_per_element_prefill: float
    perplexity: float
    perplexity_rise_pct: float
    perplexity_rise_stderr_pct: float
    kl: float
    top1_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The quality of all levels at one split, measured on one text."""

    split: int
    num_tokens: int
    window: int
    baseline_perplexity: float
    tables_sha256: str
    levels: tuple[LevelQuality, ...]

    def to_json(self) -> dict[str, Any]:
        """The object `splitpoint certify --json` prints."""
        return asdict(self)


def text_windows(token_ids: Sequence[int], *, window: int, max_tokens: int | None) -> Windows:
    """Whole windows [N, window] from a text's beginning. Raises BuildError if it is too short."""
    num_windows = min(len(token_ids), max_tokens or len(token_ids)) // window
    if num_windows == 0:
        raise BuildError(f"the text has {len(token_ids)} tokens; one window needs {window}")
    return np.array(token_ids[: num_windows * window], dtype=np.int64).reshape(-1, window)


def certify(
    model: PreTrainedModel,
    ladder: Ladder,
    *,
    split: int,
    windows: Windows,
    levels: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Certificate:
    """Measure levels (None: all that the ladder has) of `ladder` at `split`.

    model: the whole model in float32, in eval mode. progress(windows done, windows in all) is
    called after each window. Raises BuildError for a split that the model does not have.
    """
    names = tuple(levels) if levels is not None else ladder.names + ladder.extra_names
    coders = [LadderCoder(ladder, name) for name in names]
    baseline, found = measure(model, coders, split=split, windows=windows, progress=progress)
    return Certificate(
        split=split,
        num_tokens=int(windows.size),
        window=windows.shape[1],
        baseline_perplexity=baseline,
        tables_sha256=ladder.tables_sha256,
        levels=tuple(found),
    )


def measure(
    model: PreTrainedModel,
    coders: Sequence[Coder],
    *,
    split: int,
    windows: Windows,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[float, list[LevelQuality]]:
    """The untouched model's perplexity, and the quality of each coder. Arguments as `certify`."""
    base_nll: list[npt.NDArray[np.float64]] = []
    rows: dict[str, list[_WindowResult]] = {coder.name: [] for coder in coders}
    for done, ids in enumerate(windows):
        tokens = torch.from_numpy(ids)
        hidden, logits = hidden_and_logits(model, split, tokens)
        before = logits.float().log_softmax(-1)
        base_nll.append(_nll(before, tokens))
        weight = before.exp()
        sent = hidden.float().numpy()
        for coder in coders:
            arrived, num_bytes = coder.send(sent, ids)
            # One message a row, for every eighth row: the rows decode alike, only sizes differ.
            single = [coder.send(sent[i : i + 1], ids[i : i + 1])[1] for i in range(7, len(ids), 8)]
            back = back_logits(model, split, torch.from_numpy(arrived).to(hidden.dtype), tokens)
            after = back.float().log_softmax(-1)
            kl = (weight * (before - after)).sum(-1)
            same = before.argmax(-1) == after.argmax(-1)
            rows[coder.name].append(
                _WindowResult(
                    nll=_nll(after, tokens),
                    kl=kl.double().numpy(),
                    same=same.numpy(),
                    prefill_bits=8 * num_bytes / sent.size,
                    decode_bits=8 * float(np.mean(single)) / sent.shape[1],
                )
            )
        if progress is not None:
            progress(done + 1, len(windows))
    baseline = np.concatenate(base_nll)
    return float(np.exp(baseline.mean())), [
        _quality(name, of_level, baseline) for name, of_level in rows.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _WindowResult:
    """What one coder does to one window."""

    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]
    prefill_bits: float
    decode_bits: float


def _nll(log_probs: torch.Tensor, tokens: torch.Tensor) -> npt.NDArray[np.float64]:
    """Negative log-likelihood [T - 1] of each next token."""
    chosen = log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
    return np.asarray(-chosen.double().numpy())


def _quality(
    name: str, rows: list[_WindowResult], baseline: npt.NDArray[np.float64]
) -> LevelQuality:
    nll = np.concatenate([row.nll for row in rows])
    change = nll - baseline
    return LevelQuality(
        name=name,
        bits_per_element=float(np.mean([row.decode_bits for row in rows])),
        bits_per_element_prefill=float(np.mean([row.prefill_bits for row in rows])),
        perplexity=float(np.exp(nll.mean())),
        perplexity_rise_pct=100 * float(np.expm1(change.mean())),
        perplexity_rise_stderr_pct=100 * float(change.std() / np.sqrt(len(change))),
        kl=float(np.concatenate([row.kl for row in rows]).mean()),
        top1_agreement=float(np.concatenate([row.same for row in rows]).mean()),
    )


def store_certificate(bundle: Path, certificate: Certificate) -> Path:
    """Write the certificate beside the split's tables and renew the bundle's manifest.

    Returns the file's path.
    """
    path = bundle / "codec" / f"split-{certificate.split}.quality.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(certificate.to_json(), indent=1) + "\n", encoding="utf-8")
    record_files(bundle, (path.relative_to(bundle).as_posix(),))
    return path
