"""Random small problems: a few layers, two or three choices an axis, shipped and bent profiles."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hypothesis import strategies as st

from hwprofiles.profiles.catalog import load_device
from hwprofiles.profiles.device import BatchPoint, DeviceProfile, Figure, LayerPoint
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.artifacts.prediction import Limits
from optimizer.cost.codec import LevelCost
from optimizer.cost.link import LinkPoint
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.cost.quality import LevelCertificate, QualityModel
from optimizer.cost.request import DraftedRound, expected_tokens
from optimizer.search.problem import DraftOption, FrontPrecision, Problem, Space
from tests.optimizer.hot_devices import drowsy, hot

HOT, DROWSY = "hot ", "drowsy "
EDGES = (
    "raspberry-pi-5-8gb",
    "jetson-orin-nano-8gb",
    "local-epyc-2core",
    f"{HOT}jetson-orin-nano-8gb",
    f"{DROWSY}raspberry-pi-5-8gb",
)
CLOUDS = ("a100-80gb", "l4-24gb", "local-epyc-2core", f"{DROWSY}l4-24gb")
LEVELS = (
    LevelCost(name="lossless", bits_per_element=27.0, encode_fixed_s=4e-5),
    LevelCost(
        name="q1", bits_per_element=4.5, encode_s_per_element=6e-8, decode_s_per_element=7e-8
    ),
    LevelCost(name="q3", bits_per_element=3.0, encode_fixed_s=1e-4, decode_fixed_s=2e-5),
)
PRICES = (
    NO_PRICES,
    Prices(cloud_per_hour=2.0),
    Prices(energy_per_kwh=0.3),
    Prices(cloud_per_hour=0.5, energy_per_kwh=30.0),
)


@cache
def device(name: str) -> DeviceProfile:
    if name.startswith(DROWSY):
        return drowsy(load_device(name.removeprefix(DROWSY)), times=1.7)
    cool = load_device(name.removeprefix(HOT))
    return hot(cool, share=0.6, watts=7.0) if name.startswith(HOT) else cool


@st.composite
def geometries(draw: Any) -> ModelGeometry:
    num_layers = draw(st.integers(2, 5))
    window = draw(st.sampled_from([None, None, 24]))
    return ModelGeometry(
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        hidden_size=draw(st.sampled_from([64, 576, 2048])),
        num_heads=draw(st.sampled_from([4, 8])),
        num_kv_heads=draw(st.sampled_from([2, 4])),
        head_dim=draw(st.sampled_from([16, 64])),
        intermediate_size=draw(st.sampled_from([96, 1536, 5504])),
        vocab_size=draw(st.sampled_from([320, 32000])),
        context_length=draw(st.integers(100, 260)),
        tied_embeddings=True,
        sliding_window=window,
        sliding_layers=(0, 1) if window and draw(st.booleans()) else (),
    )


@st.composite
def problems(draw: Any) -> Problem:
    geometry = draw(geometries())
    layers = geometry.num_layers
    splits = draw(st.lists(st.integers(0, layers), min_size=1, max_size=3, unique=True))
    bits = draw(st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, max_size=2, unique=True))
    fronts = [FrontPrecision(front_bits=b) for b in bits]
    if draw(st.booleans()):
        mixed = {split: (8,) * (split // 2) + (4,) * (split - split // 2) for split in splits}
        mixed = {split: of for split, of in mixed.items() if len(set(of)) == 2}
        if mixed:
            fronts.append(FrontPrecision(front_bits=4, layer_bits=mixed))
    drafts = [DraftOption()]
    if draw(st.booleans()):
        acceptance, length = draw(st.floats(0, 0.95)), draw(st.integers(1, 4))
        drafting = DraftedRound(
            num_drafts=length,
            tokens_per_round=expected_tokens(acceptance, length),
            draft_s=draw(st.floats(0, 0.01)),
        )
        only = draw(st.sampled_from([None, splits[0]]))
        drafts.append(DraftOption(kind="head", drafting=drafting, memory_bytes=1e6, split=only))
    certificates = {}
    if draw(st.booleans()):
        drop = draw(st.floats(0, 5))
        certificates[draw(st.integers(0, layers))] = {
            "q3": LevelCertificate(
                bits_per_element=2.7, prefill_bits_per_element=2.5, drop_pct=drop
            )
        }
    prompt = draw(st.integers(1, 60))
    answer = draw(st.integers(1, 30))
    num_sessions = draw(st.sampled_from([1, 1, 3]))
    cloud = device(draw(st.sampled_from(CLOUDS)))
    if draw(st.booleans()):  # a server whose stack and bookkeeping were measured
        source = next(iter(cloud.sources))
        cloud = replace(
            cloud,
            overheads=replace(
                cloud.overheads,
                session_s=Figure(value=2e-4, source=source),
                sample_s_per_logit=Figure(value=1e-9, source=source),
                message_s=Figure(value=3e-4, source=source),
            ),
        )
    edge = device(draw(st.sampled_from(EDGES)))
    if draw(st.booleans()):
        edge, cloud = whole_layers(edge), whole_layers(cloud)
    return Problem(
        geometry=geometry,
        edge=edge,
        cloud=cloud,
        space=Space(
            splits=tuple(sorted(splits)),
            fronts=tuple(fronts),
            back_bits=tuple(draw(st.sampled_from([(8,), (16, 8), (32, 16)]))),
            kv_bits=tuple(draw(st.sampled_from([(32,), (32, 8), (16, 8)]))),
            levels=tuple(draw(st.sampled_from([LEVELS[:1], LEVELS[:2], LEVELS[::2]]))),
            chunks=tuple(draw(st.sampled_from([(16,), (16, 64), (7, 32)]))),
            drafts=tuple(drafts),
        ),
        quality=QualityModel(num_layers=layers, certificates=certificates),
        limits=Limits(prompt_tokens=prompt, num_sessions=num_sessions),
        max_tokens=draw(st.integers(prompt + answer, geometry.context_length)),
        answer_tokens=answer,
        exact_front=draw(st.booleans()),
        slack=draw(st.sampled_from([0.0, 0.01, 0.2])),
        prices=draw(st.sampled_from(PRICES)),
    )


def whole_layers(profile: DeviceProfile) -> DeviceProfile:
    """A profile that knows whole layers, and how many rows fare in several working sets."""
    kernels = []
    for kernel in profile.kernels:
        rate = kernel.batch.points[-1].flops_per_s
        points = tuple(
            BatchPoint(
                num_rows=rows,
                flops_per_s=rate * rows / (rows + 3) / (1 + size / 1e8),
                num_weights=1e6,
                working_set_bytes=size,
            )
            for size in (1e6, 2e7, 3e8)
            for rows in (2, 16, 128)
        )
        layers = tuple(
            LayerPoint(
                width=width,
                working_set_bytes=size,
                num_sessions=sessions,
                num_rows=rows,
                seconds=seconds,
            )
            for width, size, sessions, rows, seconds in (
                (256, 1e7, 1, 1, 3e-5),
                (256, 1e7, 1, 64, 4e-4),
                (256, 1e7, 4, 4, 9e-5),
                (256, 9e7, 1, 1, 4e-5),
                (256, 9e7, 1, 64, 5e-4),
                (1024, 2e7, 1, 1, 7e-5),
                (1024, 2e7, 1, 64, 9e-4),
            )
        )
        batch = replace(kernel.batch, points=points)
        kernels.append(replace(kernel, batch=batch, layers=layers))
    pause = Figure(value=3e-4, source=next(iter(profile.sources)))
    attention = (replace(cache, packed_width=1280) for cache in profile.attention)
    return replace(
        profile,
        kernels=tuple(kernels),
        attention=tuple(attention),
        overheads=replace(profile.overheads, pause_s=pause),
    )


links = st.builds(
    LinkPoint,
    up_bytes_per_s=st.floats(1e3, 1e8),
    down_bytes_per_s=st.floats(1e3, 1e8),
    rtt_s=st.floats(0, 0.5),
)
