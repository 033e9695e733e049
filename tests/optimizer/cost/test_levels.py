"""Levels as the planner knows them: what their kinds assume, and certificates before that."""

from __future__ import annotations

from codec.levels.registry import EXTRA_LEVELS as EXTRA_SPECS
from codec.levels.registry import LADDER_LEVELS, kind_of
from optimizer.cost.levels import DEFAULT_LEVELS, EXTRA_LEVELS, level_at
from optimizer.cost.quality import ASSUMED_LEVEL_PCT, LevelCertificate, QualityModel


def test_every_level_that_a_build_makes_is_priced_as_its_kind_says() -> None:
    specs = (*LADDER_LEVELS, *EXTRA_SPECS)
    costs = (*DEFAULT_LEVELS, *EXTRA_LEVELS)
    assert [cost.name for cost in costs] == [spec.name for spec in specs]
    for cost, spec in zip(costs, specs, strict=True):
        seconds = kind_of(spec.name).seconds
        assert cost.bits_per_element == spec.bits_per_element
        assert cost.encode_fixed_s == seconds.encode_fixed_s
        assert cost.encode_s_per_element == seconds.encode_s_per_element
        assert cost.decode_fixed_s == seconds.decode_fixed_s
        assert cost.decode_s_per_element == seconds.decode_s_per_element
        assert ASSUMED_LEVEL_PCT[spec.name] == spec.quality_loss_pct


def test_between_certified_splits_the_dearer_neighbour_counts() -> None:
    def certified(bits: float) -> dict[str, LevelCertificate]:
        return {
            "q3": LevelCertificate(
                bits_per_element=bits, prefill_bits_per_element=bits, drop_pct=1.0
            )
        }

    quality = QualityModel(num_layers=30, certificates={5: certified(2.5), 15: certified(2.8)})
    q3 = next(level for level in DEFAULT_LEVELS if level.name == "q3")
    assert level_at(q3, quality, 5).bits_per_element == 2.5
    assert level_at(q3, quality, 10).bits_per_element == 2.8
    q4 = next(level for level in DEFAULT_LEVELS if level.name == "q4")
    assert level_at(q4, quality, 10) == q4
