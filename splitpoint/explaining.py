"""What was predicted for an answer beside what it took: where records, plans and profiles meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from edge.generation.measured import measured_generation
from hwprofiles.links.catalog import load_link
from hwprofiles.profiles.catalog import load_device
from optimizer.artifacts.bundle import checked_files
from optimizer.artifacts.plan import ModelRef, Plan
from optimizer.cost.link import link_at
from optimizer.cost.money import NO_PRICES, Prices
from optimizer.cost.quality import QualityModel, read_certificates
from optimizer.errors import MeasurementError
from optimizer.measured.comparison import ComparedFigure
from optimizer.measured.energy_figures import energy_note, prices_of
from optimizer.measured.log import read_measurements
from optimizer.measured.predict import (
    PredictionBasis,
    compare_generations,
    planned_figures,
    predicted_figures,
)
from optimizer.measured.record import MeasuredGeneration, MeasuredMachine
from splitpoint.recording import machine_of

if TYPE_CHECKING:
    from edge.client import EdgeClient
    from edge.generation.report import Completion


def basis_of(
    model: ModelRef,
    *,
    edge: str,
    cloud: str,
    link: str,
    certificates: Sequence[Path],
    epsilon: float = 0.5,
    prices: Prices = NO_PRICES,
) -> PredictionBasis:
    """Profiles by name or path, the link at `epsilon`, and certificates: bundles or files.

    ProfileError for no such profile, PlanError for a certificate that cannot be read.
    """
    files = [file for path in certificates for file in _certificates_at(path)]
    return PredictionBasis(
        edge=load_device(edge),
        cloud=load_device(cloud),
        link=link_at(load_link(link), epsilon=epsilon),
        quality=QualityModel(
            num_layers=model.geometry.num_layers, certificates=read_certificates(files)
        ),
        prices=prices,
    )


def _certificates_at(path: Path) -> tuple[Path, ...]:
    """The certificates of a bundle, perhaps none; a file is one."""
    return checked_files(path, "codec", ".quality.json") if path.is_dir() else (path,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedAnswer:
    """Predicted beside measured. note: why energy is not among it; empty where it is."""

    figures: list[ComparedFigure]
    note: str = ""


def compare_completion(
    completion: Completion, client: EdgeClient, basis: PredictionBasis | None
) -> ComparedAnswer:
    """Every figure of one answer that was predicted; without a basis by the plan itself.

    MeasurementError for an answer that says nothing about its plan.
    """
    record = measured_generation(
        completion, client.plan, machine=machine_of(client), program="run", today=date.today()
    )
    if record is None:
        raise MeasurementError(
            "--explain: this answer went another way than the plan (reconnected, moved, "
            "answered elsewhere, or without a token), so nothing was predicted for it"
        )
    if basis is None:
        predicted, prices = planned_figures(record, client.plan), prices_of(client.plan)
    else:
        predicted, prices = predicted_figures(record, basis), basis.prices
    return ComparedAnswer(
        figures=compare_generations([record], [predicted], prices=prices),
        note=energy_note(record, device=None if basis is None else basis.edge, plan=client.plan),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedDeployment:
    """Answers of one configuration, and how its predictions did. note: why energy is not among
    them; empty where it is."""

    plan: Plan
    machine: MeasuredMachine
    num_answers: int
    figures: tuple[ComparedFigure, ...]
    note: str = ""


def check_log(path: Path, model: ModelRef, basis: PredictionBasis) -> list[CheckedDeployment]:
    """Every configuration of `model` in a log, against what `basis` predicts for each answer.

    MeasurementError for a log without an answer of this model.
    """
    records = [item for item in read_measurements(path) if isinstance(item, MeasuredGeneration)]
    groups: dict[tuple[Plan, MeasuredMachine], list[MeasuredGeneration]] = {}
    for item in records:
        if _is_of(item.plan.model, model):
            groups.setdefault((item.plan, item.machine), []).append(item)
    if not groups:
        raise MeasurementError(
            f"{path}: none of its {len(records)} answers is of the model {model.id}"
        )
    return [
        CheckedDeployment(
            plan=plan,
            machine=machine,
            num_answers=len(items),
            figures=tuple(
                compare_generations(
                    items,
                    [predicted_figures(item, basis) for item in items],
                    prices=basis.prices,
                )
            ),
            note=_common_note(items, basis),
        )
        for (plan, machine), items in groups.items()
    ]


def _common_note(items: Sequence[MeasuredGeneration], basis: PredictionBasis) -> str:
    """Why energy is compared for none of these answers; empty where it is for one."""
    notes = [energy_note(item, device=basis.edge, plan=item.plan) for item in items]
    return notes[0] if all(notes) else ""


def _is_of(measured: ModelRef, asked: ModelRef) -> bool:
    """The same weights where both sides know them; the same shape otherwise."""
    if measured.sha256 and asked.sha256:
        return measured.sha256 == asked.sha256
    return measured.geometry == asked.geometry
