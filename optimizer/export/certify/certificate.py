"""Certify a ladder: how many bits each level takes, and what it does to the model's predictions.

The text is cut into windows of W tokens. The front's hidden state is encoded and decoded, the back
continues from the result, and its predictions are compared with those of the untouched model. All
of this is float32.
`LevelQuality` defines the metrics. The bundle stores the certificate as JSON; the planner reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec.ladder import Ladder
from codec.session_coder import SessionCoder
from optimizer.artifacts.bundle import record_files
from optimizer.artifacts.codec_tables import DEFAULT_TABLES, quality_name
from optimizer.errors import BuildError
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import Progress, finish, states_at

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


class SessionLevelCoder:
    """A level whose rows are predicted from the window's earlier ones, as a Coder.

    A window is a session of its own, and its rows are one frame. name: None: the level's.
    """

    def __init__(self, ladder: Ladder, level: str, name: str | None = None) -> None:
        self.name = name or level
        self._level = level
        self._ladder = ladder
        self._session = SessionCoder(ladder)

    def send(
        self, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], int]:
        """See Coder. The session is the rows' from now on."""
        self._session = SessionCoder(self._ladder)
        frame, arrived = self._session.encode(self._level, rows, token_ids, first_position=0)
        found, _ = self._session.decode(frame, token_ids=token_ids, first_position=0)
        self._session.take(0, token_ids, arrived)
        return found, len(frame)

    def bytes_alone(
        self, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64], at: int
    ) -> int:
        """Bytes of a frame of row `at` alone, behind the rows before it of what was sent last."""
        one = slice(at, at + 1)
        frame, _ = self._session.encode(self._level, rows[one], token_ids[one], first_position=at)
        return len(frame)


def bytes_alone(
    coder: Coder, rows: npt.NDArray[np.float32], token_ids: npt.NDArray[np.int64], at: int
) -> int:
    """Bytes of a message of row `at` of rows [T, D] alone. The rows were sent before."""
    if isinstance(coder, SessionLevelCoder):
        return coder.bytes_alone(rows, token_ids, at)
    return coder.send(rows[at : at + 1], token_ids[at : at + 1])[1]


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
    """The quality of all levels at one split, measured on one text.

    adapted: of the levels that can, with rows predicted from the window's earlier ones.
    """

    split: int
    num_tokens: int
    window: int
    baseline_perplexity: float
    tables_sha256: str
    levels: tuple[LevelQuality, ...]
    adapted: tuple[LevelQuality, ...] = ()

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
    model: LayeredModel,
    ladder: Ladder,
    *,
    split: int,
    windows: Windows,
    levels: Sequence[str] | None = None,
    adapt: bool = False,
    progress: Progress | None = None,
) -> Certificate:
    """Measure levels (None: all that the ladder has) of `ladder` at `split`.

    adapt: also with rows predicted from earlier ones, as far as the tables can.
    progress(what is done, steps done, steps in all) is called as it goes on. Raises BuildError for
    a split that the model does not have.
    """
    names = tuple(levels) if levels is not None else ladder.names + ladder.extra_names
    recalling = [level.name for level in ladder.levels if level.recalled is not None]
    coders: list[Coder] = [LadderCoder(ladder, name) for name in names]
    if adapt:
        coders += [SessionLevelCoder(ladder, name) for name in names if name in recalling]
    baseline, found = measure(model, coders, split=split, windows=windows, progress=progress)
    return Certificate(
        split=split,
        num_tokens=int(windows.size),
        window=windows.shape[1],
        baseline_perplexity=baseline,
        tables_sha256=ladder.tables_sha256,
        levels=tuple(found[: len(names)]),
        adapted=tuple(found[len(names) :]),
    )


def measure(
    model: LayeredModel,
    coders: Sequence[Coder],
    *,
    split: int,
    windows: Windows,
    progress: Progress | None = None,
) -> tuple[float, list[LevelQuality]]:
    """The untouched model's perplexity, and the quality of each coder. Arguments as `certify`.

    Where the model's layers stay loaded, windows go through one by one, else all together.
    """
    tell = progress or (lambda what, done, total: None)
    base_nll: list[npt.NDArray[np.float64]] = []
    rows: list[list[_WindowResult]] = [[] for _ in coders]
    size = 1 if model.keeps else len(windows)
    for begin in range(0, len(windows), size):
        within = _quiet if model.keeps else tell
        for nll, results in _measured(model, coders, split, windows[begin : begin + size], within):
            base_nll.append(nll)
            for of_coder, result in zip(rows, results, strict=True):
                of_coder.append(result)
            tell("measuring windows", len(base_nll), len(windows))
    baseline = np.concatenate(base_nll)
    return float(np.exp(baseline.mean())), [
        _quality(coder.name, of_coder, baseline)
        for coder, of_coder in zip(coders, rows, strict=True)
    ]


def _quiet(what: str, done: int, total: int) -> None:
    """A progress that is told elsewhere."""


def _measured(
    model: LayeredModel, coders: Sequence[Coder], split: int, windows: Windows, tell: Progress
) -> Iterator[tuple[npt.NDArray[np.float64], list[_WindowResult]]]:
    """For each window, the untouched model's NLL [T - 1], and what each coder does to it."""
    states = states_at(model, [split], windows, tell)[split]
    count, window, size = states.shape
    rows = model.new_rows(count * (1 + len(coders)), window)
    bits: list[list[tuple[float, float]]] = []
    for at, ids in enumerate(windows):
        sent = states.read(at, at + 1)[0]
        rows.write(at, sent[None])
        bits.append([])
        for index, coder in enumerate(coders):
            arrived, num_bytes = coder.send(sent.numpy(), ids)
            rows.write((1 + index) * count + at, torch.from_numpy(arrived)[None])
            # One message a row, for every eighth row: the rows decode alike, only sizes differ.
            single = [bytes_alone(coder, sent.numpy(), ids, i) for i in range(7, len(ids), 8)]
            prefill = 8 * num_bytes / (window * size)
            bits[-1].append((prefill, 8 * float(np.mean(single)) / size))
    states.close()
    finish(model, rows, split, tell, what="measuring levels")
    for at, ids in enumerate(windows):
        parts = [rows.read(i, i + 1)[0] for i in range(at, len(rows), count)]
        nll, compared = _compared(model, parts, torch.from_numpy(ids))
        yield (
            nll,
            [
                _WindowResult(nll=other, kl=kl, same=same, prefill_bits=prefill, decode_bits=decode)
                for (other, kl, same), (prefill, decode) in zip(compared, bits[at], strict=True)
            ],
        )
    rows.close()
    model.drop_head()


def _compared(
    model: LayeredModel, rows: Sequence[Tensor], tokens: Tensor
) -> tuple[
    npt.NDArray[np.float64],
    list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]],
]:
    """NLL [T - 1] of rows[0], and NLL, KL [T] and same top token [T] of each of the others.

    rows: [T, D] each, after the last layer.
    """
    nll: list[list[Tensor]] = [[] for _ in rows]
    kl: list[list[Tensor]] = [[] for _ in rows]
    same: list[list[Tensor]] = [[] for _ in rows]
    with torch.no_grad():
        for begin, end in model.logit_pieces(len(tokens)):
            before = model.logits(rows[0][begin:end]).log_softmax(-1)
            weight, best = before.exp(), before.argmax(-1)
            for index, part in enumerate(rows):
                after = before
                if index:
                    after = model.logits(part[begin:end]).log_softmax(-1)
                    kl[index].append((weight * (before - after)).sum(-1).double().cpu())
                    same[index].append((best == after.argmax(-1)).cpu())
                following = tokens[begin + 1 : end + 1].to(after.device)
                chosen = after[: len(following)].gather(1, following[:, None])[:, 0]
                nll[index].append(-chosen.double().cpu())
    found = [torch.cat(parts).numpy() for parts in nll]
    return found[0], [
        (found[index], torch.cat(kl[index]).numpy(), torch.cat(same[index]).numpy())
        for index in range(1, len(rows))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _WindowResult:
    """What one coder does to one window."""

    nll: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]
    prefill_bits: float
    decode_bits: float


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


def store_certificate(
    bundle: Path, certificate: Certificate, *, tables: str = DEFAULT_TABLES
) -> Path:
    """Write the certificate beside the split's tables and renew the bundle's manifest.

    tables: their name. Returns the file's path.
    """
    path = bundle / quality_name(certificate.split, tables)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(certificate.to_json(), indent=1) + "\n", encoding="utf-8")
    record_files(bundle, (path.relative_to(bundle).as_posix(),))
    return path
