"""Bits against quality of every level and every baseline, at several splits, on real hidden states.

    python benchmarks/codec/rate_quality.py --model MODEL --text F \
        --tables 10=split-10.tables --tables 20=split-20.tables \
        [--tokens 16384] [--levels q3,q4] [--baselines] [--cache DIR] [--out F.json] [--plot F.png]

`--adapt` measures the calibrated levels a second time, with rows predicted from the window's
earlier ones. `--tables 10=` names a split without tables: the baselines alone. `--windows 16` stops
after 16.

One front pass serves all splits (kept in --cache); the back runs once per coder. Windows are taken
in an order that spreads over the text and --out is rewritten after each, so a run that is cut short
is a fair sample. A table on stderr, one JSON object last. Metrics: `splitpoint certify`'s; the
standard error of KL is over windows, that of perplexity over tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from benchmarks.codec.baselines import ALL
from benchmarks.codec.hidden_states import Passed, front_pass
from codec.ladder import Ladder
from optimizer.export.calibration.hidden_states import front_skipped, hidden_passed_through
from optimizer.export.certify.certificate import (
    Coder,
    LadderCoder,
    LevelQuality,
    SessionLevelCoder,
    bytes_alone,
    text_windows,
)
from optimizer.export.certify.plot import plot_levels
from optimizer.export.sources.model_source import open_source

EVERY = 8  # one row in so many is also sent as a frame of its own
PIECE = 64  # rows whose logits are computed at a time


@dataclass(frozen=True, slots=True)
class OfWindow:
    """One coder on one window: log-probability lost per token, and the means of the rest."""

    loss: npt.NDArray[np.float64]
    kl: float
    same: float
    bits: float
    bits_alone: float


@dataclass(frozen=True, slots=True)
class Untouched:
    """Predictions of the unsplit model on one window.

    log_probs, probs: [T, V]; likeliest: [T]; chosen: [T - 1], log-probability of the text's own
    tokens.
    """

    log_probs: torch.Tensor
    probs: torch.Tensor
    likeliest: torch.Tensor
    chosen: torch.Tensor

    @classmethod
    def of(
        cls, model: PreTrainedModel, last: npt.NDArray[np.float32], tokens: torch.Tensor
    ) -> Untouched:
        """From what the head reads, [T, D]."""
        with torch.no_grad():
            log_probs = model.get_output_embeddings()(torch.from_numpy(last)).float()
            log_probs -= log_probs.logsumexp(-1, keepdim=True)
        chosen = log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
        return cls(log_probs, log_probs.exp(), log_probs.argmax(-1), chosen)


def through(
    model: PreTrainedModel,
    coder: Coder,
    split: int,
    rows: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64],
    before: Untouched,
) -> OfWindow:
    """Send one window's rows by `coder` and let the back go on from what arrives."""
    arrived, num_bytes = coder.send(rows, ids)
    alone = [bytes_alone(coder, rows, ids, i) for i in range(3, len(ids), EVERY)]
    tokens = torch.from_numpy(ids)
    state = torch.from_numpy(arrived)[None]
    loss, kl, same = [], 0.0, 0
    with torch.no_grad():
        with front_skipped(model, split), hidden_passed_through(model, split, lambda _: state):
            last = model.get_decoder()(tokens[None], use_cache=False).last_hidden_state[0]
        # A piece's logits stay small enough for memory to be used again, not mapped anew.
        for begin in range(0, len(ids), PIECE):
            part = slice(begin, begin + PIECE)
            after = model.get_output_embeddings()(last[part]).float()
            after -= after.logsumexp(-1, keepdim=True)
            following = tokens[begin + 1 : begin + 1 + len(after)]
            chosen = after[: len(following)].gather(1, following[:, None])[:, 0]
            loss.append((before.chosen[part] - chosen).double().numpy())
            same += int((after.argmax(-1) == before.likeliest[part]).sum())
            torch.sub(before.log_probs[part], after, out=after)
            kl += float((before.probs[part] * after).sum(-1).double().sum())
    return OfWindow(
        loss=np.concatenate(loss),
        kl=kl / len(ids),
        same=same / len(ids),
        bits=8 * num_bytes / rows.size,
        bits_alone=8 * float(np.mean(alone)) / rows.shape[1],
    )


def summary(name: str, seen: Sequence[OfWindow], baseline: float) -> dict[str, Any]:
    """One coder's figures over the windows so far."""
    loss = np.concatenate([window.loss for window in seen])
    kl = np.array([window.kl for window in seen])
    quality = LevelQuality(
        name=name,
        bits_per_element=float(np.mean([window.bits_alone for window in seen])),
        bits_per_element_prefill=float(np.mean([window.bits for window in seen])),
        perplexity=baseline * float(np.exp(loss.mean())),
        perplexity_rise_pct=100 * float(np.expm1(loss.mean())),
        perplexity_rise_stderr_pct=100 * float(loss.std() / np.sqrt(len(loss))),
        kl=float(kl.mean()),
        top1_agreement=float(np.mean([window.same for window in seen])),
    )
    fields = {field: getattr(quality, field) for field in LevelQuality.__dataclass_fields__}
    return fields | {"kl_stderr": float(kl.std() / np.sqrt(len(kl)))}


def spread_out(count: int) -> list[int]:
    """0 .. count - 1 by bit reversal: any beginning of it covers the whole evenly."""
    width = max(1, (count - 1).bit_length())
    order = (int(f"{i:0{width}b}"[::-1], 2) for i in range(1 << width))
    return [i for i in order if i < count]


def run(
    model: PreTrainedModel,
    passed: Passed,
    coders: dict[int, list[Coder]],
    out: Path | None,
    most: int | None = None,
) -> dict[str, Any]:
    """Results by split, after all windows or `most` of them; written to `out` after each."""
    seen: dict[int, dict[str, list[OfWindow]]] = {split: {} for split in coders}
    text: list[npt.NDArray[np.float64]] = []
    results: dict[str, Any] = {}
    for done, window in enumerate(spread_out(len(passed.windows))[:most]):
        ids = passed.windows[window]
        before = Untouched.of(model, passed.last[window], torch.from_numpy(ids))
        text.append(before.chosen.double().numpy())
        baseline = float(np.exp(-np.concatenate(text).mean()))
        for split, of_split in coders.items():
            rows = passed.hidden[split][window]
            for coder in of_split:
                found = through(model, coder, split, rows, ids, before)
                seen[split].setdefault(coder.name, []).append(found)
        results = {
            "tokens": (done + 1) * passed.windows.shape[1],
            "baseline_perplexity": baseline,
            "splits": {
                str(split): [summary(name, found, baseline) for name, found in by_name.items()]
                for split, by_name in seen.items()
            },
        }
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"window {done + 1} of {len(passed.windows)}", file=sys.stderr, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tables", action="append", required=True, metavar="SPLIT=FILE")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int)
    parser.add_argument("--levels", default="")
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--adapt", action="store_true", help="also predict rows from earlier ones")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()

    source = open_source(options.model)
    model = source.load_model()
    ids = source.load_tokenizer()(options.text.read_text(encoding="utf-8"))["input_ids"]
    windows = text_windows(ids, window=options.window, max_tokens=options.tokens)
    coders: dict[int, list[Coder]] = {}
    ours: set[str] = set()
    for entry in options.tables:
        split, _, path = entry.partition("=")
        coders[int(split)] = []
        if path:
            ladder = Ladder.load(path, hidden_size=source.geometry.hidden_size)
            every = ladder.names + ladder.extra_names
            names = options.levels.split(",") if options.levels else every
            coders[int(split)] += [LadderCoder(ladder, name) for name in names]
            ours.update(names)
            if options.adapt:
                recalling = {one.name for one in ladder.levels if one.recalled is not None}
                for name in (name for name in names if name in recalling):
                    coders[int(split)].append(SessionLevelCoder(ladder, name, f"{name}, adapted"))
        if options.baselines:
            coders[int(split)] += ALL
    passed = front_pass(model, windows, list(coders), options.cache)
    results = run(model, passed, coders, options.out, options.windows)
    for split, levels in results["splits"].items():
        for level in levels:
            print(
                f"{split:>3} {level['name']:32} {level['bits_per_element']:6.3f} "
                f"{level['bits_per_element_prefill']:6.3f} {level['perplexity_rise_pct']:+8.2f} "
                f"± {level['perplexity_rise_stderr_pct']:.2f} % {level['kl']:9.5f} "
                f"± {level['kl_stderr']:.5f} {level['top1_agreement']:.4f}",
                file=sys.stderr,
            )
    if options.plot:
        plot(results, ours, options.plot)
    print(json.dumps(results))


def plot(results: dict[str, Any], ours: set[str], path: Path) -> None:
    """The first split's levels and baselines."""
    split, levels = next(iter(results["splits"].items()))
    fields = LevelQuality.__dataclass_fields__
    found = [LevelQuality(**{key: level[key] for key in fields}) for level in levels]
    groups = {
        "calibrated (ours)": tuple(q for q in found if q.name in ours and q.name[0] == "q"),
        "TAB-Q with rANS (ours)": tuple(q for q in found if q.name in ours and q.name[0] == "t"),
        **{q.name: (q,) for q in found if q.name not in ours},
    }
    title = f"split {split}, {results['tokens']} tokens of held-out text"
    plot_levels({name: group for name, group in groups.items() if group}, path, title=title)


if __name__ == "__main__":
    main()
