"""Model specs for planning without weights: geometry of known models, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import ProfileError
from hwprofiles.schema.strict_yaml import load_strict
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.errors import ModelError

SPECS_DIR = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model by its numbers. `source` is the address of the config they were read from;
    `num_parameters` is the published count, which the geometry must reproduce."""

    name: str
    hub_id: str
    source: str
    num_parameters: int
    geometry: ModelGeometry


def shipped_specs() -> tuple[str, ...]:
    """Names of the specs that come with the package, sorted."""
    return tuple(sorted(path.stem for path in SPECS_DIR.glob("*.yaml")))


def load_spec(name_or_path: str | Path) -> ModelSpec:
    """Load a shipped spec by name, or any spec by path.

    Raises ModelError: no such spec (names the shipped ones), or a malformed file (names file,
    key and allowed keys).
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = SPECS_DIR / f"{name_or_path}.yaml"
        if not path.is_file():
            raise ModelError(
                f"no model spec {str(name_or_path)!r}; shipped are {', '.join(shipped_specs())}"
            )
    try:
        return load_strict(path, ModelSpec)
    except ProfileError as error:
        raise ModelError(str(error)) from error
