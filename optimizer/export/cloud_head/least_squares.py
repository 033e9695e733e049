"""Where the training of a cloud head begins: at the best linear map to the next state.

The head's first matrix reads the embedding of token t + 1 beside the state of position t. By least
squares it gives the state of position t + 1, and the layer behind it adds nothing yet. Embeddings
are tens of times smaller than states. So from a start that lets the state through, training needs
very many steps until the token counts at all. Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from optimizer.export.cloud_head.corpus import PassageRef
from optimizer.export.cloud_head.head import CloudHead
from optimizer.export.cloud_head.training import Embed

# Of each channel's own power: what keeps channels that hardly vary from large weights.
RIDGE: Final = 1e-3
_LEAST: Final = 1e-6


def begin_linear(head: CloudHead, passages: Sequence[PassageRef], embed: Embed) -> None:
    """Set `head.fc` to the map with the least squared error on `passages`, in place.

    What the layer behind it adds becomes zero. Raises nothing for passages of any length; those of
    one position say nothing.
    """
    width = head.sizes.hidden_size
    power = torch.zeros(2 * width, 2 * width, dtype=torch.float64)
    shared = torch.zeros(2 * width, width, dtype=torch.float64)
    for passage in passages:
        states = torch.from_numpy(passage.states[:]).float()
        embedded = embed(torch.from_numpy(passage.token_ids))[1 : len(states)]
        rows = torch.cat([embedded, states[:-1]], -1)
        power += rows.T @ rows
        shared += rows.T @ states[1:]
    power += torch.diag(power.diagonal() * RIDGE + _LEAST)
    with torch.no_grad():
        head.fc.weight.copy_(torch.linalg.solve(power, shared).T)
        head.o_proj.weight.zero_()
        head.down_proj.weight.zero_()
