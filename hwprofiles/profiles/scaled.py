"""A device profile whose times are multiplied by a factor, kind of work by kind of work.

A factor of 2 makes the work twice as slow: rates are divided, seconds multiplied. Only what a
factor was measured for changes. What changed names the source `REFINED`, which has to be among the
profile's sources. Ours.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any, Final

from hwprofiles.profiles.device import (
    AttentionKernel,
    AttentionPoint,
    CodecSpeed,
    Compute,
    DeviceProfile,
    Figure,
    Kernel,
    LayerPoint,
    Source,
)

REFINED: Final = "refined"
FACTORS: Final = "refined_factors"  # a source that no figure names: what changed, and by how much


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionsUsed:
    """Which kernels some work ran on: weight bits with the type of the arithmetic, and the bits of
    the KV cache."""

    kernels: frozenset[tuple[int, Compute]]
    kv_bits: int


def with_source(
    profile: DeviceProfile, source: Source, *, factors: Source | None = None
) -> DeviceProfile:
    """The profile with `source` as what refined figures name, and a record of the factors."""
    added = {REFINED: source} if factors is None else {REFINED: source, FACTORS: factors}
    return replace(profile, sources={**profile.sources, **added})


def scale_one_row(
    profile: DeviceProfile, used: PrecisionsUsed, *, work: float, attention: float
) -> DeviceProfile:
    """Steps of one row: `attention` for the attention over the cache, `work` for all else."""
    kernels = tuple(
        _one_row_kernel(kernel, work) if _is_used(kernel, used.kernels) else kernel
        for kernel in profile.kernels
    )
    overheads = profile.overheads
    changed = replace(overheads, step_s=_scaled(overheads.step_s, work))
    if overheads.session_s is not None:
        changed = replace(changed, session_s=_scaled(overheads.session_s, work))
    if overheads.pause_s is not None:
        changed = replace(changed, pause_s=_scaled(overheads.pause_s, work))
    if any(_is_used(kernel, used.kernels) and not kernel.layers for kernel in profile.kernels):
        changed = replace(changed, layer_s=_scaled(overheads.layer_s, work))
    return replace(
        profile,
        kernels=kernels,
        attention=_attention(profile, used.kv_bits, attention, one_row=True),
        overheads=changed,
    )


def scale_many_rows(profile: DeviceProfile, used: PrecisionsUsed, *, work: float) -> DeviceProfile:
    """Steps of several rows."""
    kernels = tuple(
        _many_row_kernel(kernel, work) if _is_used(kernel, used.kernels) else kernel
        for kernel in profile.kernels
    )
    overheads = profile.overheads
    if any(_is_used(kernel, used.kernels) and not kernel.layers for kernel in profile.kernels):
        rate = _scaled(overheads.elementwise_bytes_per_s, 1 / work)
        overheads = replace(overheads, elementwise_bytes_per_s=rate)
    return replace(
        profile,
        kernels=kernels,
        attention=_attention(profile, used.kv_bits, work, one_row=False),
        overheads=overheads,
    )


def scale_coder(
    profile: DeviceProfile, kind: str, *, encodes: bool, frame: float, element: float
) -> DeviceProfile:
    """Encoding or decoding of one kind, at every width: what a frame takes, and an element."""
    fixed, each = (
        ("encode_fixed_s", "encode_s_per_element")
        if encodes
        else ("decode_fixed_s", "decode_s_per_element")
    )

    def scaled(speed: CodecSpeed) -> CodecSpeed:
        changes: dict[str, Any] = {
            fixed: getattr(speed, fixed) * frame,
            each: getattr(speed, each) * element,
        }
        return replace(speed, source=REFINED, **changes)

    codec = tuple(scaled(speed) if speed.kind == kind else speed for speed in profile.codec)
    return replace(profile, codec=codec)


def scale_sampling(profile: DeviceProfile, factor: float) -> DeviceProfile:
    """Drawing a token; nothing where the profile does not know it."""
    figure = profile.overheads.sample_s_per_logit
    if figure is None:
        return profile
    return replace(
        profile, overheads=replace(profile.overheads, sample_s_per_logit=_scaled(figure, factor))
    )


def scale_watts(profile: DeviceProfile, *, waiting: float, working: float) -> DeviceProfile:
    """What a sensor measures of the device; nothing where the profile does not know it."""
    power = profile.power
    if power is None or power.idle_watts is None or power.load_watts is None:
        return profile
    changed = replace(
        power,
        idle_watts=_scaled(power.idle_watts, waiting),
        load_watts=_scaled(power.load_watts, working),
    )
    return replace(profile, power=changed)


def with_base_bytes(profile: DeviceProfile, num_bytes: float) -> DeviceProfile:
    """The profile with another size of the process before it has a model."""
    base = Figure(value=num_bytes, source=REFINED)
    return replace(profile, memory=replace(profile.memory, runtime_base_bytes=base))


def _is_used(kernel: Kernel, used: Set[tuple[int, Compute]]) -> bool:
    return (kernel.weight_bits, kernel.compute) in used


def _scaled(figure: Figure, factor: float) -> Figure:
    return replace(figure, value=figure.value * factor, source=REFINED)


def _one_row_kernel(kernel: Kernel, factor: float) -> Kernel:
    points = tuple(
        replace(point, bytes_per_s=point.bytes_per_s / factor) for point in kernel.decode.points
    )
    return replace(
        kernel,
        dispatch_s=kernel.dispatch_s * factor,
        lookup_s_per_element=kernel.lookup_s_per_element * factor,
        source=REFINED,
        decode=replace(kernel.decode, points=points, source=REFINED),
        layers=tuple(_layer(point, factor, one_row=True) for point in kernel.layers),
    )


def _many_row_kernel(kernel: Kernel, factor: float) -> Kernel:
    points = tuple(
        replace(point, flops_per_s=point.flops_per_s / factor) for point in kernel.batch.points
    )
    return replace(
        kernel,
        source=REFINED,
        batch=replace(kernel.batch, points=points, source=REFINED),
        layers=tuple(_layer(point, factor, one_row=False) for point in kernel.layers),
    )


def _layer(point: LayerPoint, factor: float, *, one_row: bool) -> LayerPoint:
    if (point.num_rows == 1) is not one_row:
        return point
    return replace(point, seconds=point.seconds * factor)


def _attention(
    profile: DeviceProfile, kv_bits: int, factor: float, *, one_row: bool
) -> tuple[AttentionKernel, ...]:
    def scaled(point: AttentionPoint) -> AttentionPoint:
        if (point.num_rows == 1) is not one_row:
            return point
        return replace(
            point, fixed_s=point.fixed_s * factor, flops_per_s=point.flops_per_s / factor
        )

    return tuple(
        replace(kernel, source=REFINED, points=tuple(scaled(point) for point in kernel.points))
        if kernel.kv_bits == kv_bits
        else kernel
        for kernel in profile.attention
    )
