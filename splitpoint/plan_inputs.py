"""What `splitpoint plan` reads before it searches: the model, its measured quality, drafters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hwprofiles.schema.near_names import did_you_mean
from optimizer.errors import ModelError, PlanError

if TYPE_CHECKING:
    from optimizer.artifacts.plan import ModelRef
    from optimizer.artifacts.sensitivity import Sensitivity
    from optimizer.cost.quality import QualityModel
    from optimizer.search.problem import DraftOption


def model_ref(model: str) -> ModelRef:
    """A model by its files; or, with no hash because any weights of the shape will do, by a shipped
    spec's name, a `config.json` without weights beside it, or a hub id, of which the config alone
    is fetched."""
    from optimizer.artifacts.plan import ModelRef
    from optimizer.artifacts.specs import load_spec, shipped_specs
    from optimizer.export.sources.fetch import fetch_config, is_hub_id

    path = Path(model)
    if model in shipped_specs() or path.suffix in (".yaml", ".yml"):
        spec = load_spec(model)
        return ModelRef(id=spec.hub_id, sha256="", geometry=spec.geometry)
    if is_hub_id(model):
        from optimizer.export.sources.config_geometry import geometry_of_config

        return ModelRef(id=model, sha256="", geometry=geometry_of_config(fetch_config(model)))
    if not path.exists():
        raise ModelError(
            f"no model {model!r}: neither a file or folder, a hub id (owner/model), "
            f"nor one of {', '.join(shipped_specs())}"
            f"{did_you_mean(model, shipped_specs())}"
        )
    folder = path.parent if path.name == "config.json" else path
    if (folder / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        from optimizer.export.sources.config_geometry import geometry_of_config

        return ModelRef(id=folder.resolve().name, sha256="", geometry=geometry_of_config(folder))
    from optimizer.export.sources.model_source import open_source

    source = open_source(folder)
    return ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry)


def sensitivity_of(reference: ModelRef, path: Path) -> Sensitivity:
    """Losses of single layers, of this very model."""
    from optimizer.artifacts.sensitivity import Sensitivity

    found = Sensitivity.load(path)
    if reference.sha256 and found.model_sha256 != reference.sha256:
        raise PlanError(f"{path}: measured on another model ({found.model_sha256[:12]})")
    return found


def drafts_of(
    bundle: Path | None,
    ngram_acceptance: float | None,
    tokens_per_round_trip: float | None,
) -> list[DraftOption]:
    """The ways to draft that were asked for."""
    from optimizer.search.drafts import (
        DraftCost,
        draft_options,
        heads_of_bundle,
        measured_drafting,
    )

    heads = () if bundle is None else heads_of_bundle(bundle)
    costs = [*heads]
    if ngram_acceptance is not None:
        costs.append(DraftCost(kind="ngram", chances=(ngram_acceptance,)))
    if tokens_per_round_trip is not None:
        costs.append(measured_drafting(tokens_per_round_trip, heads))
    return [choice for cost in costs for choice in draft_options(cost)]


def quality_of(
    reference: ModelRef, certificates: list[Path], sensitivity: Sensitivity | None = None
) -> QualityModel:
    """The quality model: certificates from files and bundles, measured losses of front layers,
    the rest assumed."""
    from optimizer.artifacts.bundle import checked_files
    from optimizer.cost.quality import QualityModel, read_certificates

    files: list[Path] = []
    for path in certificates:
        found = checked_files(path, "codec", ".quality.json") if path.is_dir() else (path,)
        if not found:
            raise PlanError(f"{path}: no certificates in it (make them with 'splitpoint certify')")
        files += found
    return QualityModel(
        num_layers=reference.geometry.num_layers,
        certificates=read_certificates(files),
        layer_pct=() if sensitivity is None else sensitivity.layer_pct(),
    )
