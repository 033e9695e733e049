"""Build a bundle on disk from a model and a plan, complete or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hwprofiles.heap import trim_heap
from hwprofiles.peak_memory import peak_memory_bytes
from optimizer.artifacts.bundle import (
    MANIFEST_NAME,
    PLAN_NAME,
    TEMPLATE_NAME,
    Role,
    tables_name,
    write_manifest,
)
from optimizer.artifacts.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate
from optimizer.artifacts.plan import ModelRef, Plan
from optimizer.artifacts.weight_reference import WeightsPlace
from optimizer.cost.build_memory import CALIBRATION_TOKENS
from optimizer.cost.front_kernels import widened_note
from optimizer.cost.memory import edge_memory_over
from optimizer.errors import BuildError, ChatTemplateError, ModelError
from optimizer.export.back import write_back
from optimizer.export.back_check import OpenBack, check_back
from optimizer.export.back_reference import NotReferableError, write_reference
from optimizer.export.build_stages import TRYING_BACK, BuildStages, Progress, Share
from optimizer.export.disk_faults import naming_the_disk
from optimizer.export.front.front_graph import export_front, fitting_blocks
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.working_folder import publish, working_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The text to fit the compression levels on: `num_tokens` tokens of `text`.

    num_tokens: at least; a wide model needs more (four for each channel). text None: a model whose
    layers fit in memory together writes it, and any other takes the text that ships with the
    package. writes: False: so does every model. known_tokens: as of `calibrate_splits`. device:
    what the layers compute on, "cpu" or "cuda".
    """

    num_tokens: int = CALIBRATION_TOKENS
    text: str | None = None
    writes: bool = True
    known_tokens: int | None = None
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
    resume: bool = False,
    share: Share | None = None,
    open_back: OpenBack | None = None,
) -> BuildReport:
    """Build `plan` into the folder `out`, which must not exist (or `force` replaces it).

    sides: what to build; a device needs only the edge side, a server only the cloud side.
    weights: whether the cloud side holds the back's weights, or says where they are.
    calibration: None leaves `lossless` as the only compression level. resume: go on where a build
    of the same inputs was interrupted. share: told the share of the build that is done. open_back:
    the server's code, to try the back that was written (`optimizer.export.back_check`); None leaves
    it untried.

    Everything is built in a folder beside `out` that is renamed at the end, so a failure leaves
    nothing behind. Ctrl-C leaves that folder for a build that resumes; any other build removes it.
    Raises BuildError, and ModelError where the model cannot be read.
    """
    source.check()
    asked = for_model(plan, source)
    plan = fitting_blocks(source, asked)
    _check_place(out, force=force)
    with_cloud = "cloud" in sides and not plan.edge_is_whole
    calibration = None if plan.edge_is_whole else calibration
    wanted = (
        *(("tokenizer", "front") if "edge" in sides else ()),
        *(("back",) if with_cloud else ()),
        *((TRYING_BACK,) if with_cloud and open_back is not None else ()),
        *(("calibration",) if calibration is not None else ()),
        "manifest",
    )
    with naming_the_disk(out.parent), working_folder(out, resume=resume, keep=True) as working:
        stages = BuildStages(
            working,
            inputs=_digest(source, plan, sorted(sides), calibration, weights),
            wanted=wanted,
            progress=progress,
            share=share,
        )
        made, warnings = stages.made, ()
        (made / PLAN_NAME).write_text(plan.to_yaml(), encoding="utf-8")
        if "edge" in sides:
            (made / "edge").mkdir(exist_ok=True)
            warnings = tuple(stages.run("tokenizer", lambda: _write_tokenizer(source, made)))
            told = stages.run("front", lambda: export_front(source, plan, made / "edge"))
            warnings = (*warnings, *(told or ()))
        if with_cloud:
            (made / "cloud").mkdir(exist_ok=True)
            stages.run("back", lambda: _write_cloud(source, plan, made / "cloud", weights))
        if with_cloud and open_back is not None:
            stages.run(TRYING_BACK, lambda: check_back(source, plan, made / "cloud", open_back))
        if calibration is not None:
            wish = calibration
            stages.run("calibration", lambda: _calibrate(source, plan, stages, wish))
        stages.run("manifest", lambda: write_manifest(made))
        publish(made, out)
    return BuildReport(
        bundle=out,
        edge_bytes=_folder_bytes(out / "edge"),
        cloud_bytes=_folder_bytes(out / "cloud"),
        peak_memory_bytes=peak_memory_bytes(),
        warnings=(*source.notes, *warnings, *_memory_notes(asked, plan, sides)),
    )


def _memory_notes(asked: Plan, plan: Plan, sides: Collection[Role]) -> Iterator[str]:
    """A line for a device's front whose weights take more memory than their bits, and one where
    they take more than the plan says that was asked for."""
    if "edge" not in sides or not plan.partition.split:
        return
    if note := widened_note(plan.partition.front_bits):
        yield note
    if plan.weight_blocks != asked.weight_blocks:
        counted, taken = (edge_memory_over(0.0, one).weight_bytes / 2**20 for one in (asked, plan))
        yield (
            "the checkpoint's own grid has blocks of 32 weights, which the front takes over: its "
            f"weights take {taken:,.0f} MiB in memory, and the plan counted on {counted:,.0f} MiB"
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


def _digest(source: ModelSource, plan: Plan, *choices: object) -> str:
    """A digest of what a bundle is made from: what stages of an interrupted build must share."""
    values = (source.sha256, plan.to_yaml(), *(repr(choice) for choice in choices))
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _write_tokenizer(source: ModelSource, root: Path) -> tuple[str, ...]:
    """The tokenizer's files. Returns warnings for whoever builds."""
    tokenizer = source.tokenizer_files()
    (root / "edge" / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
    template = tokenizer.chat_template
    if template is not None and len(template) <= MAX_TEMPLATE_CHARS:
        (root / TEMPLATE_NAME).write_text(template, encoding="utf-8")
    tokenizer.settings.save(root / "edge")
    return _template_faults(template)


def _write_cloud(source: ModelSource, plan: Plan, folder: Path, weights: WeightsPlace) -> None:
    """The back's weights into `folder`, or where they are; and the tokenizer, for grammars."""
    with contextlib.suppress(ModelError):  # a server needs no tokenizer for anything else
        tokenizer = source.tokenizer_files().tokenizer_json
        (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
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
    source: ModelSource, plan: Plan, stages: BuildStages, calibration: Calibration
) -> None:
    """Fit the tables of each split."""
    from optimizer.export.calibration.calibrate import calibrate, calibration_text
    from optimizer.export.calibration.text import OwnTextHints, own_text_hints
    from optimizer.export.layers.layered_model import LayeredModel

    (stages.made / "codec").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rows-", dir=stages.made.parent) as scratch:
        model = LayeredModel(source, folder=Path(scratch), device=calibration.device)
        ids, text = calibration_text(
            model,
            source,
            given=calibration.text,
            num_tokens=calibration.num_tokens,
            writes=calibration.writes,
        )
        stages.calibrating(f"calibration text: {text}", 0, 1)
        for split in plan.splits:
            trim_heap()  # what the split before took is free
            calibrate(
                model,
                split=split,
                out=stages.made / tables_name(split),
                token_ids=ids,
                num_tokens=calibration.num_tokens,
                own=own_text_hints(source.load_tokenizer()) if ids is None else OwnTextHints(),
                text=text,
                known_tokens=calibration.known_tokens,
                progress=stages.calibrating,
            )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
