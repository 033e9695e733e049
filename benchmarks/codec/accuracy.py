"""Question sets through the split at each level, beside the unsplit model.

    python benchmarks/codec/accuracy.py --model MODEL --data DIR --split 10 --tables T \
        [--sets lambada_openai,piqa,arc_easy,hellaswag] [--rows 200] [--levels q3,q4] [--out F.json]

Scoring as in the data's README: multiple choice by the sum of log-probabilities of the choice's
tokens (acc) and that sum over its bytes (acc_norm); LAMBADA by greedy match of every token of the
target. A context is coded once as a prompt, one frame a sequence; all choices of a row share a
batch and every level starts from the same front pass. Standard errors are binomial; `flips` counts
the rows whose answer differs from the unsplit model's, the steadier figure. JSON last.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codec.ladder import Ladder
from optimizer.build.calib_model import front_skipped, hidden_passed_through
from optimizer.build.certify import LadderCoder
from optimizer.build.source import open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Sequences of one question: token ids, where the scored part begins, its bytes; the answer."""

    sequences: tuple[tuple[int, ...], ...]
    begins: tuple[int, ...]
    num_bytes: tuple[int, ...]
    gold: int


def read_rows(path: Path, tokenizer: Any, count: int) -> list[Row]:
    """Evenly spaced rows of a set; LAMBADA rows have one sequence."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for index in np.linspace(0, len(lines) - 1, min(count, len(lines))).astype(int):
        entry = json.loads(lines[index])
        endings = entry.get("choices") or [entry["target"]]
        context = tokenizer(entry["context"])["input_ids"]
        whole = [tokenizer(f"{entry['context']} {ending}")["input_ids"] for ending in endings]
        rows.append(
            Row(
                sequences=tuple(tuple(ids) for ids in whole),
                begins=tuple(min(len(context), len(ids) - 1) for ids in whole),
                num_bytes=tuple(len(ending.encode()) for ending in endings),
                gold=int(entry.get("gold", 0)),
            )
        )
    return rows


def scores(row: Row, logits: Tensor) -> list[tuple[float, bool]]:
    """For each sequence: log-probability of the scored tokens; whether each is the likeliest."""
    found = []
    for index, (ids, begin) in enumerate(zip(row.sequences, row.begins, strict=True)):
        part = logits[index, begin - 1 : len(ids) - 1].float().log_softmax(-1)
        wanted = torch.tensor(ids[begin:])
        chosen = part.gather(1, wanted[:, None])
        found.append((float(chosen.sum()), bool((part.argmax(-1) == wanted).all())))
    return found


def answer(row: Row, found: list[tuple[float, bool]], *, by_bytes: bool) -> int:
    """Index of the choice, or for a single sequence 0 when it was matched and 1 when not."""
    if len(found) == 1:
        return 0 if found[0][1] else 1
    sums = [
        total / (size if by_bytes else 1)
        for (total, _), size in zip(found, row.num_bytes, strict=True)
    ]
    return int(np.argmax(sums))


def judge(
    model: PreTrainedModel, split: int, coders: list[LadderCoder], rows: list[Row], name: str
) -> list[dict[str, Any]]:
    """Accuracy and flips of the unsplit model and of every coder."""
    answers: dict[str, list[tuple[int, int]]] = {}
    for done, row in enumerate(rows):
        longest = max(len(ids) for ids in row.sequences)
        padded = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in row.sequences])
        kept: list[Tensor] = []

        def keep(state: Tensor) -> Tensor:
            kept.append(state.clone())  # noqa: B023
            return state

        with torch.no_grad(), hidden_passed_through(model, split, keep):
            found = scores(row, model(padded, use_cache=False).logits)
        both = [answer(row, found, by_bytes=by_bytes) for by_bytes in (False, True)]
        answers.setdefault("unsplit", []).append((both[0], both[1]))
        for coder in coders:
            state = kept[0].clone()
            for index, ids in enumerate(row.sequences):
                sent = state[index, : len(ids)].float().numpy()
                state[index, : len(ids)] = torch.from_numpy(coder.send(sent, np.array(ids))[0])
            with (
                torch.no_grad(),
                front_skipped(model, split),
                hidden_passed_through(model, split, lambda _: state),  # noqa: B023
            ):
                found = scores(row, model(padded, use_cache=False).logits)
            both = [answer(row, found, by_bytes=by_bytes) for by_bytes in (False, True)]
            answers.setdefault(coder.name, []).append((both[0], both[1]))
        if (done + 1) % 20 == 0:
            print(f"{name}: {done + 1} of {len(rows)}", file=sys.stderr, flush=True)
    gold = np.array([row.gold for row in rows])
    unsplit = np.array(answers["unsplit"])
    table = []
    for coder, given in answers.items():
        right = np.array(given) == gold[:, None]
        table.append(
            {
                "set": name,
                "level": coder,
                "rows": len(rows),
                "acc": float(right[:, 0].mean()),
                "acc_norm": float(right[:, 1].mean()),
                "acc_stderr": float(np.sqrt(right[:, 0].var() / len(rows))),
                "flips": int((np.array(given)[:, 0] != unsplit[:, 0]).sum()),
            }
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--split", type=int, default=10)
    parser.add_argument("--sets", default="lambada_openai,piqa,arc_easy,hellaswag")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--levels", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = open_source(options.model)
    model, tokenizer = source.load_model(), source.load_tokenizer()
    ladder = Ladder.load(options.tables, hidden_size=source.geometry.hidden_size)
    names = options.levels.split(",") if options.levels else ladder.names
    coders = [LadderCoder(ladder, name) for name in names]
    table: list[dict[str, Any]] = []
    for name in options.sets.split(","):
        rows = read_rows(options.data / name / f"{name}.jsonl", tokenizer, options.rows)
        table += judge(model, options.split, coders, rows, name)
        if options.out:
            options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for line in table:
        print(
            f"{line['set']:16} {line['level']:10} acc {100 * line['acc']:5.1f} ± "
            f"{100 * line['acc_stderr']:.1f} norm {100 * line['acc_norm']:5.1f} "
            f"flips {line['flips']} of {line['rows']}",
            file=sys.stderr,
        )
    print(json.dumps({"split": options.split, "results": table}))


if __name__ == "__main__":
    main()
