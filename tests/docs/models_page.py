"""The page of models, written from the table of families and the cases that are tested.

`python -m tests.docs.models_page` writes it; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from optimizer.families import FAMILIES, ModelFamily
from tests.model_cases import POSITIONS, SHAPES, Case

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "models.md"
HEAD = """\
# Models

*Written by `python -m tests.docs.models_page` from the table of families (`optimizer/families.py`)
and the tested cases (`tests/model_cases.py`). A test compares this page with them.*

A model can be split when its family, its positions and its shape are on this page. For every line,
`tests/end_to_end/test_every_model.py` builds a tiny seeded model. It compares both halves with
transformers' whole model: a prompt in parts, a draft that is rolled back, single steps, and the
tokens of `generate`. Families are tested at every split.

A build also compares each layer of the device's graph with transformers' layer, with the model's
own weights in float32. It refuses a model of which a layer departs by more than 0.001 of a row, and
writes the errors to `front_check.json`, beside the front.

InternLM2 is read as the Llama that it is. Experts at 4 and 8 bits need ONNX Runtime's `QMoE` on the
device; a gpt-oss in MXFP4 is unpacked as it is read.

## Families
"""
REFUSED = """
## Refused

- Models with a recurrent state (Qwen3.5, LFM2, Granite's hybrids, Mamba and others): a session
  keeps keys and values only.
- Mixtures of experts of other families (Mixtral, DeepSeek V3, Granite's with experts).
- Models that look ahead, and Phi with `qk_layernorm`.
- Contexts beyond the length at which dynamic NTK or LongRoPE changes its frequencies.
"""


def page() -> str:
    """The whole page."""
    families = [
        "| Family | `model_type` | What its layers have |",
        "|---|---|---|",
        *(
            f"| {family.architecture.removesuffix('ForCausalLM')} | `{family.model_type}` | "
            f"{_traits(family)} |"
            for family in FAMILIES
        ),
    ]
    return "\n".join(
        [
            HEAD,
            *families,
            "\n## Positions\n",
            *_cases(POSITIONS),
            "\n## Shapes\n",
            *_cases(SHAPES),
            REFUSED,
        ]
    )


def _cases(cases: dict[str, Case]) -> list[str]:
    rows = [f"| {case.what} | {case.family} |" for case in cases.values()]
    return ["| What | Tested with |", "|---|---|", *rows]


def _traits(family: ModelFamily) -> str:
    norms = family.norms
    before = norms.before_attention is not None
    after = norms.after_attention is not None
    traits = {
        "norms before and after attention and MLP": before and after,
        "norms after attention and MLP only": after and not before,
        "attention and MLP side by side": norms.parallel,
        "LayerNorm": family.norm_kind == "layer",
        "norms of queries and keys per head": family.query_key_norms == "head",
        "norms of queries and keys over the full width": family.query_key_norms == "width",
        "sliding windows": family.sliding_windows,
        "soft-capped scores": family.soft_caps,
        "joined matrices": family.fused_projections,
        "an MLP without a gate": not family.gated,
        "rotation of a share of the channels": family.partial_rotary,
        "rotation of neighbouring channels": family.rotary_pairs,
        "a scaled embedding": family.scales_embedding,
        "multipliers": family.multipliers,
        "experts": family.experts is not None,
        "scores that belong to no token": family.sinks,
    }
    found = ", ".join(name for name, has in traits.items() if has)
    return found or "Llama's layers"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
