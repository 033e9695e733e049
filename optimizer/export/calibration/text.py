"""Text to calibrate on: the user's, the model's own, or what ships with the package.

Sampling from the model needs no corpus, has the model's own distribution in every language and
format it knows, and cannot leak a test set. Self-generated calibration data: Williams et al. 2024,
arXiv:2410.17170. It takes a pass through all layers for each position, so only a model whose
layers stay in memory writes its text.

`shipped_text.txt`, for the others: the proceedings of the Library of Congress's Workshop on
Electronic Texts (1992, in the public domain), alternating with pages and programs of this project.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from codec.arrays import I64
from optimizer.export.calibration.hidden_states import cache_argument, embedding_shape
from optimizer.export.certify.certificate import Windows
from optimizer.export.layers.passes import Progress

GIVEN_TEXT: Final = "given by the user"
OWN_TEXT: Final = "the model's own"
SHIPPED_TEXT: Final = "shipped with splitpoint"
_TEMPERATURE: Final = 1.0


def shipped_text() -> str:
    """The text that ships with the package."""
    place = files("optimizer.export.calibration").joinpath("shipped_text.txt")
    return place.read_text(encoding="utf-8")


def shipped_ids(tokenizer: Any, num_tokens: int) -> list[int]:
    """At least `num_tokens` ids of the shipped text, which starts again where it is too short.

    tokenizer: a transformers tokenizer. Text that comes again lies at other places of a window.
    """
    ids = list(tokenizer(shipped_text())["input_ids"])
    return (ids * (num_tokens // max(len(ids), 1) + 1))[: max(num_tokens, 1)]


def sampled_windows(
    model: PreTrainedModel,
    *,
    num_windows: int,
    window: int,
    seed: int,
    batch: int = 64,
    progress: Progress | None = None,
) -> Windows:
    """[num_windows, window] token ids drawn from the model, each from one random first token.

    Costs `window` decode steps for each `batch` windows.
    """
    generator = torch.Generator().manual_seed(seed)
    vocab_size, _ = embedding_shape(model)
    name = cache_argument(model)
    rows: list[I64] = []
    with torch.no_grad():
        for begin in range(0, num_windows, batch):
            count = min(batch, num_windows - begin)
            current = torch.randint(0, vocab_size, (count, 1), generator=generator)
            drawn, cache = [current], DynamicCache(config=model.config)
            for written in range(1, window):
                out = model(current.to(model.device), use_cache=True, **{name: cache})
                share = (out.logits[:, -1].float().cpu() / _TEMPERATURE).softmax(-1)
                current = torch.multinomial(share, 1, generator=generator)
                drawn.append(current)
                if progress is not None:
                    done = begin * window + count * (written + 1)
                    progress("the model writes calibration text", done, num_windows * window)
            rows.append(torch.cat(drawn, dim=1).numpy())
    return np.concatenate(rows)
