"""What one request runs on: two machines, a link, a model cut at one place, a codec level."""

from __future__ import annotations

from dataclasses import dataclass

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Partition
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.cost.cloud import BackCost, back_kv_bits
from optimizer.cost.codec import LevelCost
from optimizer.cost.link import LinkPoint
from optimizer.cost.round_trip import stacks_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSetting:
    """What a request runs on. `level` has the codec's bits and, where known, its times.

    `kv_bits` are the edge's; the cloud keeps its caches in its own compute type. `prefill`: where
    the prompt's rows are computed; what is not "edge" needs a server with every layer. `reading_s`:
    what every pass through the front reads storage for, beside computing.
    """

    edge: DeviceProfile
    cloud: DeviceProfile
    link: LinkPoint
    geometry: ModelGeometry
    partition: Partition
    kv_bits: int
    level: LevelCost
    chunk: int = 128
    exact_front: bool = False
    front_layer_bits: tuple[int, ...] = ()
    prefill: PrefillPlace = "edge"
    reading_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether the edge has all layers and the head, and so no cloud is asked."""
        return self.partition.split == self.geometry.num_layers

    @property
    def prompt_place(self) -> PrefillPlace:
        """`prefill`, where there is a choice: at split 0 and L the rows have one place."""
        return self.prefill if 0 < self.partition.split < self.geometry.num_layers else "edge"

    @property
    def back(self) -> BackCost:
        """The cloud's layers."""
        return BackCost(
            self.cloud,
            self.geometry,
            num_layers=self.geometry.num_layers - self.partition.split,
            back_bits=self.partition.back_bits,
            kv_bits=back_kv_bits(self.cloud, self.partition.back_bits),
        )

    @property
    def all_layers(self) -> BackCost:
        """The cloud's layers for a row that comes as a token id: all of them."""
        return BackCost(
            self.cloud,
            self.geometry,
            num_layers=self.geometry.num_layers,
            back_bits=self.partition.back_bits,
            kv_bits=back_kv_bits(self.cloud, self.partition.back_bits),
        )

    @property
    def stack_s(self) -> float:
        """What both network stacks add to a round trip."""
        return stacks_s(self.edge, self.cloud)
