"""The figures of a device profile that people compare, and two profiles side by side."""

from __future__ import annotations

from typing import NamedTuple

from hwprofiles.profiles.device import DeviceProfile, Figure


class KeyFigure(NamedTuple):
    """One figure as a plan uses it (efficiency included), and the key of its source."""

    figure: str
    value: float
    unit: str
    source: str


class Comparison(NamedTuple):
    """The same figure of two profiles; `ratio` is first over second."""

    figure: str
    first: float
    second: float
    unit: str
    ratio: float


def key_figures(profile: DeviceProfile) -> list[KeyFigure]:
    """Memory, bandwidth, overheads, power, each kernel's rates at its smallest and largest sizes,
    and the codec's seconds."""
    memory, overheads = profile.memory, profile.overheads
    rows = [
        _figure("memory, total", memory.total_bytes, 1e-9, "GB"),
        _figure("memory, usable", memory.usable_bytes, 1e-9, "GB"),
        _figure("memory, process base", memory.runtime_base_bytes, 1e-6, "MB"),
        _figure("memory bandwidth", memory.bandwidth_bytes_per_s, 1e-9, "GB/s"),
        _figure("overhead a step", overheads.step_s, 1e6, "us"),
        _figure("overhead a layer", overheads.layer_s, 1e6, "us"),
    ]
    for label, figure, scale, unit in (
        ("network stack, a message's half", overheads.message_s, 1e6, "us"),
        ("sampling, each logit", overheads.sample_s_per_logit, 1e9, "ns"),
        ("overhead a session and step", overheads.session_s, 1e6, "us"),
        ("a step after a pause, over one in line", overheads.after_pause, 1, "times"),
        ("a step after a pause, longer by", overheads.pause_s, 1e6, "us"),
        ("process base, pages of files", memory.base_file_bytes, 1e-6, "MB"),
    ):
        if figure is not None:
            rows.append(_figure(label, figure, scale, unit))
    if profile.storage_read_bytes_per_s is not None:
        rows.append(_figure("storage read", profile.storage_read_bytes_per_s, 1e-6, "MB/s"))
    rows += _power_figures(profile)
    for kernel in profile.kernels:
        name = f"{kernel.weight_bits}-bit weights, {kernel.compute}"
        decode, batch = kernel.decode, kernel.batch
        sets = sorted(decode.points, key=lambda point: point.working_set_bytes)
        ends = [("", sets[0])] if len(sets) == 1 else [(", cached", sets[0]), (", large", sets[-1])]
        for label, point in ends:
            rate = point.bytes_per_s * decode.efficiency * 1e-9
            rows.append(KeyFigure(f"{name}: decode{label}", rate, "GB/s", decode.source))
        flops = batch.points[-1].flops_per_s * batch.efficiency * 1e-9
        rows.append(KeyFigure(f"{name}: prefill", flops, "GFLOP/s", batch.source))
    for cache in profile.attention:
        flops = cache.points[0].flops_per_s * cache.efficiency * 1e-9
        name = f"attention, {cache.kv_bits}-bit cache, one row"
        rows.append(KeyFigure(name, flops, "GFLOP/s", cache.source))
    for speed in profile.codec:
        width = speed.hidden_size
        for verb, fixed_s, each_s in (
            ("encode", speed.encode_fixed_s, speed.encode_s_per_element),
            ("decode", speed.decode_fixed_s, speed.decode_s_per_element),
        ):
            name = f"codec {speed.kind}, {verb} a row of {width}"
            seconds = fixed_s + width * each_s
            rows.append(KeyFigure(name, seconds * 1e6, "us", speed.source))
    return rows


def _power_figures(profile: DeviceProfile) -> list[KeyFigure]:
    power = profile.power
    if power is None:
        return []
    rows = [
        _figure(label, figure, 1.0, "W")
        for label, figure in (
            ("power, idle", power.idle_watts),
            ("power, at work", power.load_watts),
            ("power, at most", power.max_watts),
        )
        if figure is not None
    ]
    load = power.sustained
    if load is not None:
        rows.append(KeyFigure("speed that lasts", 100 * load.share, "%", load.source))
    return rows


def compare_devices(first: DeviceProfile, second: DeviceProfile) -> list[Comparison]:
    """The figures that both profiles have, in the first's order."""
    others = {row.figure: row for row in key_figures(second)}
    return [
        Comparison(row.figure, row.value, other.value, row.unit, row.value / other.value)
        for row in key_figures(first)
        if (other := others.get(row.figure)) is not None
    ]


def _figure(name: str, figure: Figure, scale: float, unit: str) -> KeyFigure:
    return KeyFigure(name, figure.effective * scale, unit, figure.source)
