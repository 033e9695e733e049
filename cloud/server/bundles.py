"""The bundles of a server: opened together, and put together by model.

Bundles of one model share one engine: that of the bundle whose back begins lowest, which has the
layers of all. An Open names the model alone. So they may differ in split, codec tables, front and
longest session, but their backs must be the same (`cloud.server.same_backs`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cloud.errors import StartError
from cloud.server.config import ServerConfig
from cloud.server.same_backs import check_same_backs
from optimizer.artifacts.bundle import MANIFEST_NAME, Bundle, open_bundle, sha256_of
from protos.messages import ServedBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBundles:
    """The bundles of one model, in the order given. name: of the model, unique on the server."""

    name: str
    bundles: tuple[Bundle, ...]

    @property
    def loaded(self) -> Bundle:
        """The one whose back is loaded: it has every layer that the others have."""
        return min(self.bundles, key=lambda one: one.plan.back_start)

    @property
    def names(self) -> str:
        """The bundles' names, for logs and messages."""
        return ", ".join(bundle_name_of(one) for one in self.bundles)

    def first_with(self, name: str) -> Bundle | None:
        """The loaded bundle if it has this file, else the first other that has; None: none."""
        known = (self.loaded, *self.bundles)
        return next((one for one in known if one.has(name)), None)


def open_bundles(config: ServerConfig) -> tuple[ModelBundles, ...]:
    """The bundles of `config` by model, that of `config.bundle` first.

    Raises BundleError, and StartError for a bundle that is there twice, for options that do not go
    together, and for bundles of one model that differ in their backs.
    """
    config.check()
    opened: dict[str, Bundle] = {}
    for folder in config.bundles:
        bundle = open_bundle(folder, role="cloud")
        manifest = sha256_of(folder / MANIFEST_NAME)
        if manifest in opened:
            raise StartError(
                f"{folder}: is the same bundle as {opened[manifest].root}; give it once"
            )
        opened[manifest] = bundle
    by_model: dict[str, list[Bundle]] = {}
    for bundle in opened.values():
        by_model.setdefault(bundle.plan.model.sha256, []).append(bundle)
    ids = [bundles[0].plan.model.id for bundles in by_model.values()]
    groups = tuple(
        ModelBundles(
            name=model_id if ids.count(model_id) == 1 else f"{model_id}@{sha256[:8]}",
            bundles=tuple(bundles),
        )
        for model_id, (sha256, bundles) in zip(ids, by_model.items(), strict=True)
    )
    for group in groups:
        for one in group.bundles:
            check_same_backs(group.loaded, one)
    return groups


def bundle_name_of(bundle: Bundle) -> str:
    """The name by which devices may ask for it: that of its folder."""
    return bundle.root.absolute().name.encode(errors="replace").decode() or "bundle"


def shown_bundles(groups: Iterable[ModelBundles], folders: Iterable[Path]) -> list[ServedBundle]:
    """What is said of each bundle, in the order of `folders`; sessions are left out."""
    by_root = {one.root: (group, one) for group in groups for one in group.bundles}
    return [_shown(*by_root[folder]) for folder in folders]


def _shown(group: ModelBundles, bundle: Bundle) -> ServedBundle:
    plan = bundle.plan
    return ServedBundle(
        name=bundle_name_of(bundle),
        manifest_sha256=sha256_of(bundle.root / MANIFEST_NAME),
        model_id=plan.model.id,
        model_sha256=plan.model.sha256,
        split=plan.partition.split,
        first_layer=group.loaded.plan.back_start,
        num_layers=plan.model.geometry.num_layers,
        hidden_size=plan.model.geometry.hidden_size,
        max_tokens=plan.max_tokens,
    )
