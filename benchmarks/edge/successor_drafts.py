"""What guesses from the cloud's own logits would bring, with nothing trained: a replay.

    python benchmarks/edge/successor_drafts.py BUNDLE --data spec_bench.jsonl --work DIR

BUNDLE is an edge bundle of SmolLM2. The whole model answers the prompts of
`benchmarks/edge/drafting.py`, greedily. The likeliest successor of every position is kept in DIR,
so that a second run only replays. The replay goes round by round: guesses come as a chain, at most
eight, as long as the measured chance of the whole chain is at least 5 %. The answer tells how many
were right. Token Recycling (arXiv:2408.08696) guesses a token's successors as the logits had them
when the token last occurred. Here the last two and three tokens are looked up before the last one.

Sources: `ngram`, the product's look-up; `successors`, from this session's logits of answers alone,
as a server has them; `successors, prompts too`, as if the head ran over prompts as well; `kept`,
the same over all sessions before. Prints a table on stderr and one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch

from benchmarks.edge.drafting import Prompt, choose
from benchmarks.edge.facts import machine
from edge.device.bundle_parts import tokenizer_of
from edge.draft.acceptance import Acceptance
from edge.draft.base import Drafter, Guess, Rows
from edge.draft.best_of import BestOf
from edge.draft.ngram import NgramDrafter
from optimizer.artifacts.bundle import open_bundle
from optimizer.artifacts.edge_settings import EdgeSettings
from tests.local_data import smollm2_model

DEEPEST: Final = 8
LEAST_REACH: Final = 0.05
SUCCESSORS: Final = 8
CONTEXT: Final = 3

# Name, then: look-up, successors, prompts too, kept.
CASES: Final = (
    ("ngram", True, False, False, False),
    ("successors", False, True, False, False),
    ("successors, prompts too", False, True, True, False),
    ("successors, prompts too, kept", False, True, True, True),
    ("ngram + successors", True, True, False, False),
    ("ngram + successors, prompts too", True, True, True, False),
    ("ngram + successors, prompts too, kept", True, True, True, True),
)

Table = dict[tuple[int, ...], tuple[int, float]]


class SuccessorDrafter:
    """Guesses what the logits gave when the last few tokens were seen last."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._tokens: list[int] = []

    def extend(self, token_ids: Sequence[int], rows: Rows | None = None) -> None:
        self._tokens.extend(token_ids)

    def rollback(self, num_tokens: int) -> None:
        del self._tokens[num_tokens:]

    def learn(self, tokens: Sequence[int], token_id: int, share: float) -> None:
        """The logits behind `tokens` had this token first."""
        for length in range(1, min(CONTEXT, len(tokens)) + 1):
            self._table[tuple(tokens[-length:])] = (token_id, share)

    def guesses(self) -> tuple[Guess, ...]:
        for length in range(min(CONTEXT, len(self._tokens)), 0, -1):
            found = self._table.get(tuple(self._tokens[-length:]))
            if found is not None:
                tenth = min(int(10 * found[1]), 9)
                return (Guess(found[0], f"successor{length}-{tenth}", 0.1 + 0.05 * tenth),)
        return ()


def answered(prompt: Prompt, count: int) -> dict[str, Any]:
    """The prompt's answer, and the likeliest successors of every position."""
    model = smollm2_model()
    with torch.inference_mode():
        given = torch.tensor([prompt.ids])
        ids = model.generate(given, max_new_tokens=count, do_sample=False, pad_token_id=0)
        top = model(ids).logits[0].float().softmax(-1).topk(SUCCESSORS)
    return {
        "id": prompt.id,
        "category": prompt.category,
        "num_prompt": len(prompt.ids),
        "ids": ids[0].tolist(),
        "likeliest": top.indices[:, 0].tolist(),
        "shares": top.values[:, 0].tolist(),
    }


def replay(
    answers: Sequence[dict[str, Any]], *, lookup: bool, successors: bool, prompts: bool, kept: bool
) -> dict[str, float]:
    """Tokens a round trip, over all answers and by category."""
    acceptance, table = Acceptance(), Table()
    tokens: dict[str, int] = {}
    rounds: dict[str, int] = {}
    for answer in answers:
        if not kept:
            table = {}
        ids, begin = answer["ids"], answer["num_prompt"]
        follow = SuccessorDrafter(table)
        drafters: list[Drafter] = [NgramDrafter()] if lookup else []
        drafters += [follow] if successors else []
        drafter = BestOf(drafters, acceptance)

        def learn(at: int, answer: dict[str, Any] = answer, follow: Any = follow) -> None:
            context = answer["ids"][max(0, at + 1 - CONTEXT) : at + 1]
            follow.learn(context, answer["likeliest"][at], answer["shares"][at])

        for at in range(0 if prompts else begin - 1, begin):
            learn(at)
        drafter.extend(ids[: begin + 1], None)
        at = begin + 1
        while at < len(ids):
            right = one_round(drafter, acceptance, ids, at)
            for position in range(at - 1, min(at + right, len(ids))):
                learn(position)
            end = min(at + right + 1, len(ids))
            drafter.extend(ids[at:end], None)
            category = answer["category"]
            tokens[category] = tokens.get(category, 0) + end - at
            rounds[category] = rounds.get(category, 0) + 1
            at = end
    found = {name: tokens[name] / rounds[name] for name in tokens}
    return {"all": sum(tokens.values()) / sum(rounds.values()), **found}


def one_round(drafter: Drafter, acceptance: Acceptance, ids: Sequence[int], at: int) -> int:
    """Guess from position `at` on; returns how many are right. The drafter is as before then."""
    said: list[Guess] = []
    reach = 1.0
    while len(said) < DEEPEST:
        guesses = drafter.guesses()
        if not guesses:
            break
        reach *= acceptance.probability(guesses[0])
        if reach < LEAST_REACH:
            break
        said.append(guesses[0])
        drafter.extend([guesses[0].token_id], None)
    drafter.rollback(at)
    right = 0
    while right < len(said) and at + right < len(ids) and said[right].token_id == ids[at + right]:
        right += 1
    acceptance.observe(said, right)
    return right


def main() -> int:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = open_bundle(arguments.bundle, role="edge")
    settings = EdgeSettings.load(arguments.bundle / "edge")
    tokenizer = tokenizer_of(bundle, settings, allow_control_tokens=False)
    room = bundle.plan.max_tokens - arguments.tokens
    prompts = choose(arguments.data, SimpleNamespace(tokenizer=tokenizer), 8, room)  # type: ignore[arg-type]
    path = arguments.work / f"answers-{arguments.tokens}.jsonl"
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    answers = [json.loads(line) for line in known]
    with path.open("a", encoding="utf-8") as log:
        for prompt in prompts[len(answers) :]:
            answers.append(answered(prompt, arguments.tokens))
            log.write(json.dumps(answers[-1]) + "\n")
            log.flush()
            print(f"\r{len(answers)}/{len(prompts)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    report: dict[str, dict[str, float]] = {}
    for label, lookup, successors, prompts_too, kept in CASES:
        report[label] = replay(
            answers, lookup=lookup, successors=successors, prompts=prompts_too, kept=kept
        )
    for label, found in report.items():
        print(f"{found['all']:6.2f}  {label}", file=sys.stderr)
    print(
        json.dumps(
            {
                "command": " ".join(["python", *sys.argv]),
                "machine": machine(),
                "tokens_a_round": report,
            }
        )
    )
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
