"""How often the server's own layers guess right behind a row that is forecast, by depth.

    python -m benchmarks.server.forecast_rows --tables BUNDLE/codec/split-10.tables --split 10 \
        --answers DIR/answers-128.jsonl

A server has no row of the token that it has just answered with: the device computes it. Here the
row is forecast from what the server has, the token and the row before:

    x_i ~ P p(t_i) + Q x_(i-1) + c,

p(t) being what the codec's tables predict of a token, and P, Q and c a ridge regression over rows.
The layers behind the split run on the forecast, with exact keys and values of all earlier rows, and
their likeliest token is the guess. The next guess stands on a forecast from that one, and so on. So
a guess costs a step of the server, and nothing is trained. A server does so
(`cloud/drafting/forecast_drafter.py`); here the fit's rows and the depth may differ from its own.

answers: those that `benchmarks/edge/successor_drafts.py` records, every second of them to fit to
and the others to guess. Counts what would be right; nothing is timed. Prints a JSON object last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from codec.levels.split_model import SplitModel
from codec.tables import read_tables
from optimizer.export.calibration.forecast_fit import RIDGE
from optimizer.export.sources.model_source import open_source

FIRST_ROW = 4  # the first rows of a text are like no others
DEPTH = 6
EVERY = 5  # rows of an answer between two places where guessing begins


class Answer(NamedTuple):
    """An answer behind its prompt: token ids [T], and rows [T, D] at the split."""

    num_prompt: int
    ids: Tensor
    rows: Tensor


class Forecast:
    """The regression. knows_row: whether it reads the row before, or the token alone."""

    def __init__(self, tables: SplitModel, answers: Sequence[Answer], *, knows_row: bool) -> None:
        self._tables = tables
        self._knows_row = knows_row
        known, wanted = [], []
        for answer in answers:
            before = answer.rows[FIRST_ROW - 1 : -1]
            known.append(self._known(answer.ids[FIRST_ROW:], before))
            wanted.append(answer.rows[FIRST_ROW:])
        x, y = torch.cat(known), torch.cat(wanted)
        self.num_rows = len(x)
        square = x.T @ x
        square += RIDGE * square.diagonal().mean() * torch.eye(len(square))
        self._weights = torch.linalg.solve(square, x.T @ y)

    def of(self, token_ids: Tensor, before: Tensor) -> Tensor:
        """Rows [T, D] of tokens [T], each behind one of `before` [T, D]."""
        return self._known(token_ids, before) @ self._weights

    def _known(self, token_ids: Tensor, before: Tensor) -> Tensor:
        parts = [torch.from_numpy(self._tables.predicted(token_ids.numpy()))]
        parts += [before] if self._knows_row else []
        return torch.cat([*parts, torch.ones(len(token_ids), 1)], dim=1)


class Back:
    """The layers behind the split, one row at a time, with keys and values of an answer's rows."""

    def __init__(self, model: Any, split: int) -> None:
        self._model = model
        self._layers = model.model.layers[split:]
        self._split = split

    @torch.inference_mode()
    def run(self, rows: Tensor, first: int, cache: DynamicCache) -> int:
        """The likeliest token behind the last of rows [T, D], which begin at position `first`."""
        hidden = rows[None]
        places = torch.arange(first, first + len(rows))[None]
        angles = self._model.model.rotary_emb(hidden, places)
        for layer in self._layers:
            out = layer(
                hidden,
                attention_mask=None,
                position_ids=places,
                position_embeddings=angles,
                past_key_values=cache,
                use_cache=True,
            )
            hidden = out[0] if isinstance(out, tuple) else out
        logits = self._model.lm_head(self._model.model.norm(hidden[:, -1]))
        return int(logits.argmax())

    def beginning(self, whole: DynamicCache, length: int) -> DynamicCache:
        """The first positions of a cache."""
        part = DynamicCache(config=self._model.config)
        for index in range(self._split, self._split + len(self._layers)):
            layer: Any = whole.layers[index]
            part.update(layer.keys[:, :, :length], layer.values[:, :, :length], index)
        return part


def reach(
    back: Back, model: Any, answers: Sequence[Answer], forecast: Callable[[Tensor, Tensor], Tensor]
) -> tuple[list[float], int]:
    """The share of places where guess 1, 2, ... and all before it are right, and their number."""
    right, places = np.zeros(DEPTH, dtype=np.int64), 0
    for answer in answers:
        whole = DynamicCache(config=model.config)
        back.run(answer.rows, 0, whole)
        for at in range(answer.num_prompt, len(answer.ids) - DEPTH - 1, EVERY):
            cache = back.beginning(whole, at)
            row, token, places = answer.rows[at - 1 : at], int(answer.ids[at]), places + 1
            for depth in range(DEPTH):
                row = forecast(torch.tensor([token]), row)
                token = back.run(row, at + depth, cache)
                if token != int(answer.ids[at + depth + 1]):
                    break
                right[depth] += 1
    return (right / max(places, 1)).tolist(), places


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m-instruct"))
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--split", type=int, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    arguments = parser.parse_args()
    model: Any = open_source(arguments.model).load_model().eval()
    model.set_attn_implementation("sdpa")
    tables = SplitModel.of(read_tables(arguments.tables)[1], model.config.hidden_size)
    answers = []
    for line in arguments.answers.read_text(encoding="utf-8").splitlines():
        recorded = json.loads(line)
        ids = torch.tensor(recorded["ids"])
        with torch.inference_mode():
            states = model(ids[None], output_hidden_states=True).hidden_states
        answers.append(Answer(recorded["num_prompt"], ids, states[arguments.split][0]))
    fitted, held = answers[::2], answers[1::2]
    back = Back(model, arguments.split)
    found: dict[str, Any] = {"benchmark": "forecast-rows", "split": arguments.split}
    for name, knows_row in (("token", False), ("token and row before", True)):
        forecast = Forecast(tables, fitted, knows_row=knows_row)
        shares, places = reach(back, model, held, forecast.of)
        found[name] = {"rows": forecast.num_rows, "places": places, "reach": shares}
        tokens = 1 + np.cumsum(shares)
        print(
            f"{name}: {' '.join(f'{share:.3f}' for share in shares)}; tokens a round with 1 to "
            f"{DEPTH} guesses: {' '.join(f'{count:.2f}' for count in tokens)}",
            file=sys.stderr,
        )
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
