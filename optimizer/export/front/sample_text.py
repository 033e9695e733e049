"""Text that ships with the package: what a front's scales are measured on.

`SAMPLE_TEXT` is short and sees every matrix's inputs. `sample_windows` gives the longer text of
`sample_text.txt` in tokens: prose, dialogue, code, data, figures and other languages, written for
this package. More text, or a chat's turns, make the scales coarser and the worst row no better
(measured on SmolLM2, on prose and on chats).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any, Final

import torch

from optimizer.errors import ModelError

# Marks the border between two pieces of the file.
BORDER: Final = "\n%%\n"
LEAST_TOKENS: Final = 2048
WINDOW_TOKENS: Final = 1024
MOST_TURNS: Final = 4096


def sample_pieces() -> tuple[str, ...]:
    """The pieces of the text, in the order of the file."""
    text = files("optimizer.export.front").joinpath("sample_text.txt").read_text(encoding="utf-8")
    return tuple(text.strip("\n").split(BORDER))


SAMPLE_TEXT: Final = sample_pieces()[0] + "\n"


def sample_windows(tokenizer: Any, longest: int) -> torch.Tensor:
    """Windows int64 [B, T] of the text, T at most `longest`, at least 2,048 tokens in all.

    tokenizer: a transformers tokenizer. A text begins as the tokenizer begins one. Where it is too
    short in these tokens, it is taken again, cut at other places.
    """
    length = max(1, min(longest, WINDOW_TOKENS))
    wanted = -(-LEAST_TOKENS // length)
    pieces = sample_pieces()
    windows: list[torch.Tensor] = []
    for number in range(MOST_TURNS):
        first = number % len(pieces)
        text = "\n\n".join((*pieces[first:], *pieces[:first]))
        ids = tokenizer(text)["input_ids"]
        for begin in range(0, len(ids) - length + 1, length):
            windows.append(torch.tensor(ids[begin : begin + length]))
            if len(windows) == wanted:
                return torch.stack(windows)
        if len(ids) < length:  # shorter than one window in these tokens
            length, windows = max(1, len(ids)), []
            wanted = -(-LEAST_TOKENS // length)
    raise ModelError("the tokenizer makes no tokens of the sample text")
