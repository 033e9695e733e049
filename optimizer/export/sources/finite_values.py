"""Values that no kernel can compute with: NaN, infinity, and what a narrower type makes infinite.

One such weight makes every logit NaN, and the model then says the same token for ever.
"""

from __future__ import annotations

import torch

from optimizer.errors import ModelError


def check_finite(tensor: torch.Tensor, origin: str, *, fits: torch.dtype = torch.float32) -> None:
    """Raises ModelError where a value is not finite, or is not finite any more in the type `fits`.

    origin: file and tensor. The values are read once: a NaN passes through minimum and maximum, and
    rounding to another type keeps the order.
    """
    if not tensor.numel():
        return
    for extreme in torch.aminmax(tensor):
        value = float(extreme)
        if not torch.isfinite(extreme):
            found = "NaN" if value != value else "an infinite value"
            raise ModelError(f"{origin} holds {found}; the checkpoint is damaged, use another")
        if not torch.isfinite(extreme.to(fits)):
            kind = str(fits).removeprefix("torch.")
            raise ModelError(
                f"{origin} holds {value:.4g}, which {kind} cannot hold "
                f"(largest: {torch.finfo(fits).max:.4g}); choose other bits"
            )
