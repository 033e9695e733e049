"""How much quality each front layer loses with fewer bits: the file of `splitpoint sensitivity`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_json import read_json
from optimizer.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Losses of a model's layers [0, split).

    losses: for each layer, the logarithm of the perplexity ratio by number of bits.
    """

    model_sha256: str
    split: int
    num_tokens: int
    losses: tuple[Mapping[int, float], ...]

    def layer_pct(self) -> tuple[Mapping[int, float], ...]:
        """The losses in percent of perplexity; negative ones, which are noise, become zero."""
        return tuple(
            {bits: 100 * math.expm1(max(loss, 0.0)) for bits, loss in layer.items()}
            for layer in self.losses
        )

    def save(self, path: Path) -> None:
        """Write the file, as JSON."""
        values = {
            "model_sha256": self.model_sha256,
            "split": self.split,
            "num_tokens": self.num_tokens,
            "losses": [{str(bits): loss for bits, loss in layer.items()} for layer in self.losses],
        }
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Sensitivity:
        """Read what `save` wrote. Raises PlanError naming the file where it is something else."""
        try:
            values = read_json(path)
            return cls(
                model_sha256=str(values["model_sha256"]),
                split=int(values["split"]),
                num_tokens=int(values["num_tokens"]),
                losses=tuple(
                    {int(bits): float(loss) for bits, loss in layer.items()}
                    for layer in values["losses"]
                ),
            )
        except ProfileError as error:
            raise PlanError(f"no layer sensitivities: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"{path}: no layer sensitivities ({error!r})") from error
