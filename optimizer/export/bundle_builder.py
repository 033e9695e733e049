"""Build a bundle on disk from a model and a plan, complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.bundle import MANIFEST_NAME, PLAN_NAME, TEMPLATE_NAME, Role, write_manifest
from optimizer.artifacts.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from optimizer.artifacts.plan import ModelRef, Plan
from optimizer.artifacts.weight_reference import WeightsPlace
from optimizer.errors import BuildError, ChatTemplateError
from optimizer.export.back import write_back
from optimizer.export.back_reference import NotReferableError, write_reference
from optimizer.export.disk_faults import naming_the_disk
from optimizer.export.front.front_graph import export_front
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.working_folder import publish, working_folder

Progress = Callable[[str], None]  # called with the name of the stage that begins


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The text to fit the compression levels on: `num_tokens` tokens of `text`.

    num_tokens: at least; a wide model needs more (four for each channel). text None: a model whose
    layers fit in memory together writes it, and any other takes the text that ships with the
    package. device: what the layers compute on, "cpu" or "cuda".
    """

    num_tokens: int = 8192
    text: str | None = None
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What was built: sizes on disk, and this process's peak memory.

    warnings: one line each, of what the device will not be able to do with this bundle.
    """

    bundle: Path
    edge_bytes: int
    cloud_bytes: int
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()


def build_bundle(
    source: ModelSource,
    plan: Plan,
    out: Path,
    *,
    progress: Progress,
    force: bool = False,
    sides: Collection[Role] = ("edge", "cloud"),
    calibration: Calibration | None = None,
    weights: WeightsPlace = "copy",
) -> BuildReport:
    """Build `plan` into the folder `out`, which must not exist (or `force` replaces it).

    sides: what to build; a device needs only the edge side, a server only the cloud side.
    weights: whether the cloud side holds the back's weights, or says where they are.
    calibration: None leaves `lossless` as the only compression level.

    Everything is built in a folder beside `out` that is renamed at the end, so a failure leaves
    nothing behind. Raises BuildError, and ModelError where the model cannot be read.
    """
    source.check()
    plan = for_model(plan, source)
    _check_place(out, force=force)
    with naming_the_disk(out.parent), working_folder(out) as working:
        made = working / "bundle"
        made.mkdir()
        warnings = _fill(source, plan, made, progress, sides, weights)
        if calibration is not None and not plan.edge_is_whole:
            _calibrate(source, plan, made, progress, calibration, scratch=working)
        progress("manifest")
        write_manifest(made)
        publish(made, out)
    return BuildReport(
        bundle=out,
        edge_bytes=_folder_bytes(out / "edge"),
        cloud_bytes=_folder_bytes(out / "cloud"),
        peak_memory_bytes=peak_memory_bytes(),
        warnings=source.notes + warnings,
    )


def _check_place(out: Path, *, force: bool) -> None:
    """BuildError where `out` is taken, and must not be replaced or is no bundle."""
    if not os.path.lexists(out):
        return
    if not force:
        raise BuildError(f"{out} exists already (--force replaces it)")
    if out.is_symlink() or not out.is_dir():
        raise BuildError(f"{out} is not a folder; remove it, or choose another --out")
    if not (out / MANIFEST_NAME).is_file() and any(out.iterdir()):
        raise BuildError(f"{out} is not a bundle, and is not replaced; choose another --out")


def for_model(plan: Plan, source: ModelSource) -> Plan:
    """`plan` for these weights.

    A plan that was made without weights names no hash, and fits any weights of its geometry. Raises
    BuildError for another model than the plan's.
    """
    if plan.model.sha256 == source.sha256:
        return plan
    if plan.model.sha256:
        raise BuildError(
            f"the plan is for model {plan.model.id} ({plan.model.sha256[:12]}), "
            f"this is {source.id} ({source.sha256[:12]})"
        )
    if plan.model.geometry != source.geometry:
        raise BuildError(
            f"the plan is for a model of {plan.model.id}'s shape; {source.id} has another"
        )
    reference = ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry)
    return replace(plan, model=reference)


def _fill(
    source: ModelSource,
    plan: Plan,
    root: Path,
    progress: Progress,
    sides: Collection[Role],
    weights: WeightsPlace,
) -> tuple[str, ...]:
    """Write everything but tables and manifest. Returns warnings for whoever builds."""
    warnings: tuple[str, ...] = ()
    if "edge" in sides:
        edge_dir = root / "edge"
        edge_dir.mkdir()
        progress("tokenizer")
        tokenizer = source.tokenizer_files()
        (edge_dir / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
        template = tokenizer.chat_template
        if template is not None and len(template) <= MAX_TEMPLATE_CHARS:
            (root / TEMPLATE_NAME).write_text(template, encoding="utf-8")
        warnings += _template_faults(template)
        tokenizer.settings.save(edge_dir)
        progress("front")
        export_front(source, plan, edge_dir)
    if "cloud" in sides and not plan.edge_is_whole:
        progress("back")
        cloud_dir = root / "cloud"
        cloud_dir.mkdir()
        _write_cloud(source, plan, cloud_dir, weights)
    (root / PLAN_NAME).write_text(plan.to_yaml(), encoding="utf-8")
    return warnings


def _write_cloud(source: ModelSource, plan: Plan, folder: Path, weights: WeightsPlace) -> None:
    """The back's weights into `folder`, or where they are."""
    if weights != "copy":
        try:
            write_reference(source, plan, folder)
            return
        except NotReferableError:
            if weights == "reference":
                raise
    write_back(source, plan, folder)


def _template_faults(template: str | None) -> tuple[str, ...]:
    """What to tell whoever builds a bundle whose chat template the device cannot use."""
    if template is None:
        return ()
    try:
        ChatTemplate(template)
    except ChatTemplateError as error:
        return (
            f"the model's chat template does not work here ({error}): "
            "chats will be refused, --prompt works",
        )
    return ()


def _calibrate(
    source: ModelSource,
    plan: Plan,
    root: Path,
    progress: Progress,
    calibration: Calibration,
    *,
    scratch: Path,
) -> None:
    """Fit the split's tables. scratch: a folder for what lies between layers."""
    from optimizer.export.calibration.calibrate import calibrate, calibration_text
    from optimizer.export.layers.layered_model import LayeredModel

    model = LayeredModel(source, folder=scratch, device=calibration.device)
    ids, text = calibration_text(
        model, source, given=calibration.text, num_tokens=calibration.num_tokens
    )
    progress(f"calibration text: {text}")
    codec_dir = root / "codec"
    codec_dir.mkdir()
    calibrate(
        model,
        split=plan.partition.split,
        out=codec_dir / f"split-{plan.partition.split}.tables",
        token_ids=ids,
        num_tokens=calibration.num_tokens,
        text=text,
        progress=lambda stage, done, total: progress(f"{stage} ({done} of {total})"),
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
