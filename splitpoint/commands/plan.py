"""`splitpoint plan`: choose split, precisions, compression and sequence length for two machines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.errors import ModelError, PlanError
from optimizer.search.problem import OBJECTIVES
from splitpoint.views.sizes import parse_size

if TYPE_CHECKING:
    from optimizer.artifacts.plan import ModelRef
    from optimizer.artifacts.sensitivity import Sensitivity
    from optimizer.cost.link import LinkPoint
    from optimizer.cost.quality import QualityModel
    from optimizer.search.planner import Found, Planner
    from optimizer.search.problem import DraftOption, Objective


def plan(
    model: Annotated[
        str,
        typer.Option(
            help="Model folder, GGUF file, or a known model's name such as llama-2-7b "
            "(planning needs no weights).",
            show_default=False,
        ),
    ],
    edge: Annotated[
        str,
        typer.Option(help="Device profile: a shipped one's name, or a file.", show_default=False),
    ],
    cloud: Annotated[str, typer.Option(help="The server's device profile.", show_default=False)],
    link: Annotated[
        str, typer.Option(help="Link profile: a shipped one's name, or a file.", show_default=False)
    ],
    objective: Annotated[
        str, typer.Option(help=f"What to make best: {', '.join(OBJECTIVES)}.")
    ] = "tbt",
    edge_memory: Annotated[
        str | None,
        typer.Option(help="Memory of the edge process, such as 512MiB.", metavar="SIZE"),
    ] = None,
    cloud_memory: Annotated[
        str | None, typer.Option(help="Memory of the server, all sessions.", metavar="SIZE")
    ] = None,
    cloud_memory_per_session: Annotated[
        str | None, typer.Option(help="KV cache of one session there.", metavar="SIZE")
    ] = None,
    max_ttft: Annotated[
        float | None,
        typer.Option(help="Most seconds to the first token, over a connection that stands."),
    ] = None,
    max_tbt: Annotated[
        float | None, typer.Option(help="Most seconds between tokens, up to the longest sequence.")
    ] = None,
    max_quality_drop: Annotated[
        float | None, typer.Option(help="Most percent of perplexity to give up.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Prompt that TTFT is predicted for.")] = 128,
    answer_tokens: Annotated[
        int | None, typer.Option(help="Usual answer; TBT is predicted in its middle (128).", min=1)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Longest prompt and answer together that must be possible (2048; the "
            "objective 'context' looks for the longest)."
        ),
    ] = None,
    sessions: Annotated[int, typer.Option(help="Sessions that share the server.")] = 1,
    epsilon: Annotated[
        float,
        typer.Option(
            help="Take the link as it is at least as good as with probability 1 - epsilon: "
            "0.5 its median, 0.05 a bad moment."
        ),
    ] = 0.5,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(help="Quality of the codec levels: a bundle, or JSON of 'certify'."),
    ] = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            help="Losses of single layers ('splitpoint sensitivity'): fronts of mixed "
            "precision are planned as well."
        ),
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="Bundle with a draft head: plan with its figures as well.")
    ] = None,
    ngram_acceptance: Annotated[
        float | None,
        typer.Option(
            help="How often a guess of prompt look-up is right: plan with it as well.",
            min=0,
            max=1,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only these splits: 10, or 8-12.", metavar="N[-M]")
    ] = None,
    level: Annotated[
        list[str] | None, typer.Option(help="Only this compression level (can be repeated).")
    ] = None,
    back_from: Annotated[
        int | None, typer.Option(help="First layer the server holds, where below the split.", min=0)
    ] = None,
    exact_front: Annotated[
        bool, typer.Option(help="Front kernels compute in float32 (see build).")
    ] = False,
    slack: Annotated[
        float,
        typer.Option(help="Percent of the objective that better quality may cost.", min=0, max=99),
    ] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Write the plan here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw latency, memory, front and map here (PNG).")
    ] = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Print every plan that no other one beats.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Plan a deployment: the best configuration within the limits, and why."""
    from hwprofiles.links.profile import load_link
    from hwprofiles.profiles.catalog import load_device
    from optimizer.artifacts.prediction import Limits, ProfilesUsed
    from optimizer.cost.link import link_at
    from optimizer.search.explain import binding_limits, explain, relaxations
    from optimizer.search.mixed import mixed_fronts
    from optimizer.search.planner import Planner
    from optimizer.search.request import make_problem
    from optimizer.search.to_plan import plan_of
    from splitpoint.views import plan_view

    wanted = _objective(objective)
    if math.inf in (max_ttft, max_tbt, max_quality_drop):
        raise typer.BadParameter("an infinite limit: leave the option out instead")
    if not 0 < epsilon < 1:
        raise typer.BadParameter(f"--epsilon {epsilon}: must lie between 0 and 1")
    try:
        limits = Limits(
            edge_memory_bytes=_size(edge_memory),
            cloud_memory_bytes=_size(cloud_memory),
            cloud_memory_per_session_bytes=_size(cloud_memory_per_session),
            max_ttft_s=max_ttft,
            max_tbt_s=max_tbt,
            max_quality_drop_pct=max_quality_drop,
            prompt_tokens=prompt_tokens,
            num_sessions=sessions,
        )
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error
    machines = load_device(edge), load_device(cloud)
    for found_device, role in zip(machines, ("edge", "cloud"), strict=True):
        if role not in found_device.roles:
            typer.echo(
                f"splitpoint: {found_device.name} is a profile of {', '.join(found_device.roles)}, "
                f"with other kernels than the {role} runs: what is predicted for it means little",
                err=True,
            )
    profile = load_link(link)
    reference = model_ref(model)
    measured = None if sensitivity is None else sensitivity_of(reference, sensitivity)
    problem = make_problem(
        reference.geometry,
        *machines,
        limits=limits,
        quality=quality_of(reference, certificate or [], measured),
        mixed_fronts=[] if measured is None else mixed_fronts(reference.geometry, measured.losses),
        objective=wanted,
        max_tokens=max_tokens,
        answer_tokens=answer_tokens,
        splits=None if split is None else _splits(split),
        levels=level,
        drafts=drafts_of(draft, ngram_acceptance),
        exact_front=exact_front,
        back_from=back_from,
        slack=slack / 100,
    )
    planner = Planner(problem)
    point = link_at(profile, epsilon=epsilon)
    used = ProfilesUsed(edge=edge, cloud=cloud, link=link, epsilon=epsilon)
    found = planner.solve(point)
    if found is None:
        needed = relaxations(planner.grid(point))
        if as_json:
            typer.echo(json.dumps(plan_view.infeasible_json(needed)))
        else:
            plan_view.print_relaxations(needed)
        raise PlanError(plan_view.infeasible_line(needed))
    decided = plan_of(
        found.grid,
        found.cell,
        model=reference,
        profiles=used,
        binding=binding_limits(planner, point, found),
    )
    why = explain(planner, point, found)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(decided.to_yaml(), encoding="utf-8")
    front = plan_view.pareto_rows(found.grid) if pareto else None
    if as_json:
        typer.echo(json.dumps(plan_view.plan_json(decided, why, front)))
    else:
        plan_view.print_plan(decided, why, objective=problem.objective)
        if front is not None:
            plan_view.print_pareto(front)
        if out is not None:
            typer.echo(str(out))
    if plot is not None:
        _plot(planner, point, found, plot)


def model_ref(model: str) -> ModelRef:
    """A model by its files; or, with no hash because any weights of the shape will do, by a shipped
    spec's name or a `config.json` without weights beside it."""
    from optimizer.artifacts.plan import ModelRef
    from optimizer.artifacts.specs import load_spec, shipped_specs

    path = Path(model)
    if model in shipped_specs() or path.suffix in (".yaml", ".yml"):
        spec = load_spec(model)
        return ModelRef(id=spec.hub_id, sha256="", geometry=spec.geometry)
    if not path.exists():
        raise ModelError(
            f"no model {model!r}: neither a file or folder, nor one of {', '.join(shipped_specs())}"
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


def drafts_of(bundle: Path | None, ngram_acceptance: float | None) -> list[DraftOption]:
    """The ways to draft that were asked for."""
    from optimizer.search.drafts import DraftCost, draft_options, head_of_bundle

    costs = [] if bundle is None else [head_of_bundle(bundle)]
    if ngram_acceptance is not None:
        costs.append(DraftCost(kind="ngram", acceptance=ngram_acceptance))
    return [choice for cost in costs for choice in draft_options(cost)]


def quality_of(
    reference: ModelRef, certificates: list[Path], sensitivity: Sensitivity | None = None
) -> QualityModel:
    """The quality model: certificates from files and bundles, measured losses of front layers,
    the rest assumed."""
    from optimizer.cost.quality import QualityModel, read_certificates

    files = []
    for path in certificates:
        files += sorted((path / "codec").glob("split-*.quality.json")) if path.is_dir() else [path]
        if path.is_dir() and not files:
            raise PlanError(f"{path}: no certificates in it (make them with 'splitpoint certify')")
    return QualityModel(
        num_layers=reference.geometry.num_layers,
        certificates=read_certificates(files),
        layer_pct=() if sensitivity is None else sensitivity.layer_pct(),
    )


def _plot(planner: Planner, point: LinkPoint, found: Found, path: Path) -> None:
    from splitpoint.views.plan_plot import draw_plan

    path.parent.mkdir(parents=True, exist_ok=True)
    draw_plan(planner, point, found, path)


def _objective(name: str) -> Objective:
    for known in OBJECTIVES:
        if name == known:
            return known
    raise typer.BadParameter(f"--objective {name}: choose one of {', '.join(OBJECTIVES)}")


def _size(text: str | None) -> int | None:
    return None if text is None else parse_size(text)


def _splits(text: str) -> range:
    first, _, last = text.partition("-")
    try:
        chosen = range(int(first), int(last or first) + 1)
    except ValueError:
        raise typer.BadParameter(f"--split {text!r}: give 10, or 8-12") from None
    if not chosen:
        raise typer.BadParameter(f"--split {text!r}: no split in it")
    return chosen
