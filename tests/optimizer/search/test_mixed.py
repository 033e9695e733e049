"""Fronts of mixed precision among the choices: wider layers where they are worth it."""

from __future__ import annotations

from typing import Any

from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.plan import ModelRef
from optimizer.artifacts.prediction import Limits, ProfilesUsed
from optimizer.artifacts.sensitivity import Sensitivity
from optimizer.artifacts.specs import load_spec
from optimizer.cost.link import LinkPoint
from optimizer.cost.quality import QualityModel
from optimizer.search.mixed import mixed_fronts
from optimizer.search.planner import Planner
from optimizer.search.request import make_problem
from optimizer.search.to_plan import plan_of

SMOL = load_spec("smollm2-135m").geometry
# Every third layer minds 4 bits; the others do not.
SENSITIVITY = Sensitivity(
    model_sha256="0" * 64,
    split=29,
    num_tokens=1,
    losses=tuple({4: 0.01 if layer % 3 == 0 else 1e-4, 8: 1e-5} for layer in range(29)),
)
LINK = LinkPoint(up_bytes_per_s=1e6, down_bytes_per_s=1e6, rtt_s=0.05)


def test_at_every_split_the_sensitive_layers_come_first() -> None:
    fronts = mixed_fronts(SMOL, SENSITIVITY.losses)
    assert len(fronts) == 7
    for front in fronts:
        for split, bits in front.layer_bits.items():
            assert len(bits) == split
            wide = {layer for layer, b in enumerate(bits) if b == 8}
            sensitive = set(range(0, split, 3))
            assert wide <= sensitive or sensitive <= wide
        assert 30 not in front.layer_bits  # a whole edge has its head to think of


def test_a_plan_takes_mixed_precision_where_uniform_bits_waste_memory_or_quality() -> None:
    limits = Limits(max_quality_drop_pct=3.0, prompt_tokens=64)

    def plan(**changes: Any):
        problem = make_problem(
            SMOL,
            load_device("raspberry-pi-5-8gb"),
            load_device("a100-80gb"),
            limits=limits,
            quality=QualityModel(num_layers=30, layer_pct=SENSITIVITY.layer_pct()),
            splits=[20],
            kv_bits=(32,),
            levels=("lossless",),
            back_bits=(32,),
            max_tokens=512,
            **changes,
        )
        planner = Planner(problem)
        found = planner.solve(LINK)
        assert found is not None
        return plan_of(
            found.grid,
            found.cell,
            model=ModelRef(id="m", sha256="", geometry=SMOL),
            profiles=ProfilesUsed(edge="e", cloud="c", link="l"),
        )

    # Uniform 4 bits lose 7 %, more than may be; 8 bits keep it with the largest front.
    uniform = plan(front_bits=(4, 8))
    assert uniform.partition.front_bits == 8
    mixed = plan(front_bits=(4, 8), mixed_fronts=mixed_fronts(SMOL, SENSITIVITY.losses))
    assert set(mixed.front_layer_bits) == {4, 8}
    assert mixed.predicted is not None
    assert uniform.predicted is not None
    assert mixed.predicted.quality_drop_pct <= 3.0
    assert mixed.predicted.edge_memory_bytes < uniform.predicted.edge_memory_bytes
    assert mixed.predicted.tbt_s < uniform.predicted.tbt_s
    assert mixed.predicted.quality_source == "certified"
