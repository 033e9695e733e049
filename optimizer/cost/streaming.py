"""Layers that are read from storage in every pass: which, how many bytes, and what that costs.

    pass = max(computing, bytes read / read rate)

A thread reads the next streamed layer while this one computes, and the first of the next pass while
the device waits for the cloud. Every pass reads the same layers in the same order, so a cache that
keeps the latest ones would never hit: the layers that stay are fixed. Streamed ones lie evenly
among them, so that reading goes on while the others compute. Source: keeping what fits and reading
the rest ahead is as in arXiv:2312.11514, section 3; the formula is ours.
"""

from __future__ import annotations

from typing import Final

from hwprofiles.profiles.device import DeviceProfile
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.plan import Plan, WeightBlocks
from optimizer.cost.front_kernels import front_kernel
from optimizer.cost.weights import layer_vector_bytes, packed_layer
from optimizer.errors import PlanError

HELD_LAYERS: Final = 2  # streamed ones in memory at once: one computes, one is read


def streamed_places(plan: Plan, count: int | None = None) -> tuple[int, ...]:
    """The layers that `plan` streams, rising; or those of `count` streamed ones."""
    count, most = plan.streamed_layers if count is None else count, plan.most_streamed_layers
    return tuple(1 + (2 * index + 1) * most // (2 * count) for index in range(count))


def packed_layer_bytes(geometry: ModelGeometry, bits: int, blocks: WeightBlocks) -> float:
    """Bytes of one layer as the kernels read it: packed codes, scales, sums, and vectors."""
    kernel = front_kernel(bits)
    parts = (
        kernel.resident_bytes(num_weights, block)
        for num_weights, block in packed_layer(geometry, bits, blocks)
    )
    return sum(parts, float(layer_vector_bytes(geometry)))


def streamed_bytes(plan: Plan) -> float:
    """Bytes that one pass through the front reads from storage."""
    return sum(
        packed_layer_bytes(plan.model.geometry, plan.layer_bits[layer], plan.weight_blocks)
        for layer in streamed_places(plan)
    )


def reading_s(device: DeviceProfile, plan: Plan) -> float:
    """Seconds that a pass through the front of `plan` reads storage for; 0 where all layers stay.

    PlanError where the profile does not know the read rate.
    """
    num_bytes = streamed_bytes(plan)
    if not num_bytes:
        return 0.0
    rate = device.storage_read_bytes_per_s
    if rate is None:
        raise PlanError(
            f"device profile {device.name}: no read rate of its storage, which streamed layers "
            "need; 'splitpoint profile device' measures it"
        )
    return num_bytes / rate.effective


def layers_of_share(share: float, split: int, *, whole: bool) -> int:
    """How many layers a front of `split` streams that streams this share of all it can."""
    return round(share * max(split - 1 - int(whole), 0))
