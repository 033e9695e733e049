"""Question sets through the split at each level, beside the unsplit model.

    python benchmarks/codec/accuracy.py --model MODEL --data DIR --split 10 --tables T \
        [--sets lambada_openai,piqa,arc_easy,hellaswag] [--rows 200] [--levels q3,q4] [--out F.json]

Scoring as in the data's README: multiple choice by the sum of log-probabilities of the choice's
tokens (acc) and that sum over its bytes (acc_norm); LAMBADA by greedy match of every token of the
target. The endings of a question share its context: all are one sequence, whose mask lets an ending
see the context and itself. Every level starts from the same front pass and codes all rows of a
question as one frame (rows do not see each other). The head is computed where an ending is
scored. Standard errors are binomial; `flips` counts the rows whose answer differs from the unsplit
model's, the steadier figure. JSON last.
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
from optimizer.export.calibration.hidden_states import front_skipped, hidden_passed_through
from optimizer.export.certify.certificate import LadderCoder
from optimizer.export.sources.model_source import open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question as one sequence: context, then every ending's part after it.

    token_ids, positions: [T]; sees: [T, T], which tokens a token attends to. scored: for each
    ending, where its tokens are predicted; wanted: those tokens; num_bytes: of the ending; gold:
    the answer.
    """

    token_ids: Tensor
    positions: Tensor
    sees: Tensor
    scored: tuple[tuple[int, ...], ...]
    wanted: tuple[tuple[int, ...], ...]
    num_bytes: tuple[int, ...]
    gold: int


def read_rows(path: Path, tokenizer: Any, count: int) -> list[Row]:
    """Evenly spaced rows of a set; LAMBADA rows have one ending."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for index in np.linspace(0, len(lines) - 1, min(count, len(lines))).astype(int):
        entry = json.loads(lines[index])
        endings = entry.get("choices") or [entry["target"]]
        context = len(tokenizer(entry["context"])["input_ids"])
        whole = [tokenizer(f"{entry['context']} {ending}")["input_ids"] for ending in endings]
        begins = [max(1, min(context, len(ids) - 1)) for ids in whole]
        sizes = tuple(len(ending.encode()) for ending in endings)
        rows.append(packed(whole, begins, sizes, int(entry.get("gold", 0))))
    return rows


def packed(whole: list[list[int]], begins: list[int], num_bytes: tuple[int, ...], gold: int) -> Row:
    """Sequences that begin alike as one; sequence i is scored from token begins[i] >= 1 on."""
    # What predicts the first scored token of an ending belongs to that ending's own part.
    alike = [len(set(tokens)) == 1 for tokens in zip(*whole, strict=False)]
    shared = min([*alike, False].index(False), min(begins) - 1)
    ids, positions, part = [*whole[0][:shared]], [*range(shared)], [-1] * shared
    scored = []
    for index, (sequence, begin) in enumerate(zip(whole, begins, strict=True)):
        at = len(ids) - shared  # where token t of this sequence lies, less t
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
        part += [index] * (len(sequence) - shared)
        scored.append(tuple(range(at + begin - 1, at + len(sequence) - 1)))
    of = torch.tensor(part)
    sees = (of[:, None] == of) | (of == -1)
    return Row(
        token_ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        sees=sees & torch.ones_like(sees).tril(),
        scored=tuple(scored),
        wanted=tuple(
            tuple(sequence[begin:]) for sequence, begin in zip(whole, begins, strict=True)
        ),
        num_bytes=num_bytes,
        gold=gold,
    )


def scores(model: PreTrainedModel, row: Row) -> list[tuple[float, bool]]:
    """For each ending: log-probability of the scored tokens; whether each is the likeliest."""
    with torch.no_grad():
        last = model.get_decoder()(
            input_ids=row.token_ids[None],
            position_ids=row.positions[None],
            attention_mask=row.sees[None, None],
            use_cache=False,
        ).last_hidden_state[0]
        at = torch.tensor([place for ending in row.scored for place in ending])
        every = model.get_output_embeddings()(last[at]).float().log_softmax(-1)
    found, begin = [], 0
    for ending in row.wanted:
        part = every[begin : begin + len(ending)]
        begin += len(ending)
        wanted = torch.tensor(ending)
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
        kept: list[Tensor] = []

        def keep(state: Tensor) -> Tensor:
            kept.append(state.clone())  # noqa: B023
            return state

        with hidden_passed_through(model, split, keep):
            found = scores(model, row)
        both = [answer(row, found, by_bytes=by_bytes) for by_bytes in (False, True)]
        answers.setdefault("unsplit", []).append((both[0], both[1]))
        sent = kept[0][0].float().numpy()
        for coder in coders:
            arrived = torch.from_numpy(coder.send(sent, row.token_ids.numpy())[0])[None]
            with (
                front_skipped(model, split),
                hidden_passed_through(model, split, lambda _: arrived),  # noqa: B023
            ):
                found = scores(model, row)
            both = [answer(row, found, by_bytes=by_bytes) for by_bytes in (False, True)]
            answers.setdefault(coder.name, []).append((both[0], both[1]))
        if (done + 1) % 20 == 0:
            print(f"{name}: {done + 1} of {len(rows)}", file=sys.stderr, flush=True)
    gold = np.array([row.gold for row in rows])
    unsplit = np.array(answers["unsplit"])
    table = []
    for level, given in answers.items():
        right = np.array(given) == gold[:, None]
        table.append(
            {
                "set": name,
                "level": level,
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
