"""The cells of `grid.py`: what is built, what is measured, and what is predicted for it.

A plan cell is a configuration over one link, from the device to the server. A front cell is the
device's engine alone, at short and long histories. A server cell is a server
process with some sessions. A large cell is a front of a bigger model with seeded weights. All
predictions come from two profiles, geometry and the link; nothing of the model runs for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

from hwprofiles.links.catalog import load_link
from optimizer.artifacts.plan import ModelRef
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.link import LinkPoint, link_at

PROMPT, ANSWER, MAX_TOKENS = 128, 24, 512
BACK_BITS, SERVER_SPLIT = 8, 10
FRONT_TOKENS: Final = 2048
POSITIONS: Final = (16, 512, 1536)
PROMPT_ROWS: Final = 128
# Of a bigger model on the server: sessions of a step, and tokens that each has cached.
LARGE_SESSIONS: Final = (1, 8)
LARGE_CACHED: Final = 128


@dataclass(frozen=True, kw_only=True)
class PlanCell:
    """A deployment. limited: the device's process gets the memory that the plan needs, no more."""

    link: str
    split: int
    front_bits: int = 4
    kv_bits: int = 8
    chunk: int = 32
    prefill: PrefillPlace = "edge"
    draft: str = "off"
    limited: bool = False

    group = "plan"

    @property
    def key(self) -> str:
        """The cell's name in results."""
        words = [self.link, *self.bundle.split("-")[1:], f"chunk {self.chunk}"]
        words += [f"prefill {self.prefill}"] if self.prefill != "edge" else []
        words += [self.draft] if self.draft != "off" else []
        return "plan: " + ", ".join(words + (["memory limit"] if self.limited else []))

    @property
    def bundle(self) -> str:
        """The edge bundle's folder; the chunk is in the plan alone."""
        return bundle_name(self.split, self.front_bits, self.kv_bits)


@dataclass(frozen=True, kw_only=True)
class FrontCell:
    """A front alone, one process: decode at `POSITIONS`, and a prompt's chunk."""

    split: int
    front_bits: int
    kv_bits: int

    group = "front"

    @property
    def key(self) -> str:
        """The cell's name in results."""
        return f"front: split {self.split}, {self.front_bits} bits, KV {self.kv_bits}"

    @property
    def bundle(self) -> str:
        """The edge bundle's folder."""
        return bundle_name(self.split, self.front_bits, self.kv_bits)


@dataclass(frozen=True, kw_only=True)
class ServerCell:
    """A server process whose sessions decode at once."""

    sessions: int

    group = "server"

    @property
    def key(self) -> str:
        """The cell's name in results."""
        return f"server: {self.sessions} sessions"


@dataclass(frozen=True, kw_only=True)
class LargeCell:
    """A front of all layers with seeded weights, in the sizes of a bigger model."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 49_152
    bits: int = 4

    group = "large"

    @property
    def key(self) -> str:
        """The cell's name in results."""
        return f"large: {self.name}, {self.bits} bits"

    @property
    def bundle(self) -> str:
        """The front's folder."""
        return f"large-{self.name}-b{self.bits}"

    @property
    def sizes(self) -> dict[str, int]:
        """For `write_seeded_front`."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
        }


@dataclass(frozen=True, kw_only=True)
class LargeServerCell:
    """The server's engine alone, with all layers and the head of a bigger model, seeded weights."""

    model: LargeCell
    bits: int = BACK_BITS

    group = "large"

    @property
    def key(self) -> str:
        """The cell's name in results."""
        return f"large: {self.model.name} server, {self.bits} bits"


GridCell = PlanCell | FrontCell | ServerCell | LargeCell | LargeServerCell


def bundle_name(split: int, front_bits: int, kv_bits: int) -> str:
    """Folder of the edge bundle of a front."""
    return f"edge-split {split}-{front_bits} bits-KV {kv_bits}"


def long_front(bundle: Path) -> Path:
    """Where the bundle's front lies with a plan of `FRONT_TOKENS` tokens."""
    return bundle.with_name(f"{bundle.name}-long")


PLANS: Final = (
    *(PlanCell(link=link, split=0) for link in ("lan", "wifi", "5g", "4g")),
    PlanCell(link="lan", split=5, front_bits=8, kv_bits=32),
    PlanCell(link="wifi", split=5, chunk=16, limited=True),
    PlanCell(link="5g", split=5, front_bits=8, kv_bits=32, chunk=64),
    PlanCell(link="4g", split=5, chunk=16),
    PlanCell(link="lan", split=10),
    PlanCell(link="wifi", split=10, chunk=16, limited=True),
    PlanCell(link="wifi+region", split=10, front_bits=8, kv_bits=32, chunk=64),
    PlanCell(link="4g", split=10, prefill="cloud"),
    PlanCell(link="5g", split=10, prefill="both"),
    PlanCell(link="4g", split=10, draft="ngram"),
    PlanCell(link="lan", split=20, limited=True),
    PlanCell(link="wifi", split=20, front_bits=8, kv_bits=32, prefill="cloud"),
    PlanCell(link="4g", split=20, front_bits=8, kv_bits=32),
    PlanCell(link="5g", split=20, draft="ngram"),
    PlanCell(link="wifi+region", split=20, draft="ngram"),
    PlanCell(link="lan", split=29, limited=True),
    PlanCell(link="5g", split=29, chunk=16),
    PlanCell(link="none", split=30, chunk=128),
    PlanCell(link="none", split=30, front_bits=8, kv_bits=32, chunk=64),
    PlanCell(link="none", split=30, limited=True),
)
FRONTS: Final = (
    *(FrontCell(split=10, front_bits=bits, kv_bits=kv) for bits, kv in ((4, 8), (8, 32), (32, 32))),
    FrontCell(split=20, front_bits=4, kv_bits=8),
    FrontCell(split=20, front_bits=8, kv_bits=32),
    FrontCell(split=30, front_bits=4, kv_bits=8),
    FrontCell(split=30, front_bits=8, kv_bits=32),
)
SERVERS: Final = tuple(ServerCell(sessions=count) for count in (1, 8, 32))
LARGE: Final = (
    LargeCell(name="0.5B", hidden=896, inner=4864, layers=24, heads=14, kv_heads=2),
    LargeCell(name="1.5B", hidden=1536, inner=8960, layers=28, heads=12, kv_heads=2),
    LargeCell(name="3B", hidden=2048, inner=11008, layers=36, heads=16, kv_heads=2),
)
LARGE_SERVERS: Final = tuple(LargeServerCell(model=model) for model in LARGE)
CELLS: Final[tuple[GridCell, ...]] = (*PLANS, *FRONTS, *SERVERS, *LARGE, *LARGE_SERVERS)


@cache
def fixed_link(name: str) -> LinkPoint:
    """The link as the emulator holds it: at its medians, without a spread. "none": never asked."""
    point = link_at(load_link("lan" if name == "none" else name), epsilon=0.5)
    return replace(point, rtt_sd=0.0, rate_sd=0.0)


@cache
def reference(model: Path) -> ModelRef:
    """The model's identity, read once."""
    from optimizer.export.sources.model_source import open_source

    source = open_source(model)
    return ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry)
