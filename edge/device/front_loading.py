"""Loads a front with a provider, and tries it before anybody relies on it.

Another provider than the CPU computes other bits with the same weights. That is allowed: the cloud
gets the rows that were computed, so both sides agree. Two things are not allowed. The same tokens
in the same steps must give the same bits, since replay, drafts and a kept cache rely on that. And
the rows must be those of the model. So a few tokens go through both providers first. The limits are
ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edge.device.front import FrontEngine
from edge.device.front_report import FrontReport, merged
from edge.device.front_trial import row_difference, some_tokens, tried_rows
from edge.device.half_front import WIDE, HalfChoice, half_choice, load_on_cpu
from edge.device.mapped_pages import can_stream
from edge.device.memory_limit import check_loaded
from edge.errors import FrontError, InputError, MemoryLimitError
from hwprofiles.errors import ProviderError
from hwprofiles.heap import trim_heap
from hwprofiles.providers.sessions import available_providers, require_listed
from hwprofiles.providers.table import AUTO, CHOICES, CPU, PROVIDERS, ExecutionProvider
from optimizer.artifacts.bundle import Bundle, front_names
from optimizer.artifacts.plan import Plan

# Products of 8-bit activations, as the CPU has them, are about 2 % from those of floats after 10
# layers of SmolLM2 (docs/results/edge.md). A wrong kernel is far beyond this limit.
MOST_DIFFERENCE: Final = 0.2


class FrontFiles(NamedTuple):
    """A front's folder, what was decided about it, and whether it has 16-bit graphs."""

    edge_dir: Path
    plan: Plan
    halves: HalfChoice


class LoadedFront(NamedTuple):
    """Engines that share weights, and what they run on."""

    engines: list[FrontEngine]
    report: FrontReport


def load_bundle_front(bundle: Bundle, **options: Any) -> LoadedFront:
    """The front of a bundle whose files are all listed. options: of `load_front`."""
    files = [bundle.path(f"edge/{name}") for name in front_names(bundle.plan)]
    halves = half_choice(bundle)
    return load_front(files[0].parent, plan=bundle.plan, halves=halves, **options)


def load_front(
    edge_dir: Path,
    *,
    plan: Plan,
    provider: str = AUTO,
    memory_limit_bytes: int | None = None,
    halves: HalfChoice = WIDE,
    **options: Any,
) -> LoadedFront:
    """Load the front in `edge_dir` with the named provider, or with the best for `auto`.

    memory_limit_bytes: of this process. The formula that is asked before (`fitting`) knows
    the CPU's kernels; with another provider the process is measured once it has loaded and tried
    the front, and what it has not touched yet is added. halves: of a front with 16-bit weights, see
    `edge.device.half_front`. options: others of `FrontEngine.load`. Streamed layers are the CPU's.

    `auto` takes the provider that the plan was made for. Next comes one that is known to run
    fronts, if it runs every node. Otherwise the CPU runs it, and the report says why. Raises
    InputError for a provider that this ONNX Runtime does not have, FrontError where it cannot run
    this front or its rows are not to be used, and MemoryLimitError.
    """
    options["low_memory"] = memory_limit_bytes is not None
    files = FrontFiles(edge_dir, plan, halves)
    count = options.get("streamed_layers")
    if plan.streamed_layers if count is None else count:
        return _load_streaming(files, provider, options)
    if provider == AUTO:
        return _load_best(files, memory_limit_bytes, options)
    if provider == CPU.name:
        return _load_on_cpu(files, memory_limit_bytes, options)
    return _load_tried(files, known_provider(provider), memory_limit_bytes, options)


def _load_on_cpu(
    files: FrontFiles, limit_bytes: int | None, options: dict[str, Any]
) -> LoadedFront:
    return LoadedFront(*load_on_cpu(*files, limit_bytes=limit_bytes, options=options))


def _load_streaming(files: FrontFiles, provider: str, options: dict[str, Any]) -> LoadedFront:
    if provider not in (AUTO, CPU.name):
        raise InputError(
            f"--provider {provider}: this front reads layers from storage in every pass, and only "
            "cpu does that"
        )
    if not can_stream():
        raise FrontError("layers can be read from storage in every pass on Linux alone")
    engines = FrontEngine.load(files.edge_dir, plan=files.plan, **options)
    report = FrontReport(
        streamed_layers=engines[0].streamed_layers,
        streamed_bytes=engines[0].streamed_bytes,
        arithmetic="fp32" if files.plan.partition.front_bits == 16 else "",
        widened=files.halves.why_not,
    )
    return LoadedFront(engines, report)


def known_provider(name: str) -> ExecutionProvider:
    """The provider of that name. InputError, with the remedy, where it is not here."""
    if name not in PROVIDERS:
        raise InputError(f"no provider {name!r}: choose one of {', '.join(CHOICES)}")
    try:
        require_listed(PROVIDERS[name])
    except ProviderError as error:
        raise InputError(f"--provider {error}") from error
    return PROVIDERS[name]


def _load_best(files: FrontFiles, limit_bytes: int | None, options: dict[str, Any]) -> LoadedFront:
    plan = files.plan
    planned = CPU.name if plan.profiles is None else plan.profiles.edge_provider
    listed = available_providers()
    not_taken: list[str] = []
    if planned != CPU.name and planned not in {each.name for each in listed}:
        not_taken.append(f"planned for {planned}, which this onnxruntime does not have")
    candidates = [each for each in listed if each.name == planned or each.in_auto]
    candidates = [each for each in candidates if each is not CPU]
    for candidate in sorted(candidates, key=lambda each: each.name != planned):
        try:
            loaded = _load_tried(files, candidate, limit_bytes, options)
        except (FrontError, MemoryLimitError) as error:
            not_taken.append(str(error))
            trim_heap()
            continue
        if candidate.name == planned or (loaded.report.is_known and not loaded.report.on_cpu):
            return loaded._replace(report=_with_reasons(loaded.report, not_taken))
        not_taken.append(f"not taken: {loaded.report.line}")
        del loaded
        trim_heap()
    loaded = _load_on_cpu(files, limit_bytes, options)
    return loaded._replace(report=_with_reasons(loaded.report, not_taken))


def _with_reasons(report: FrontReport, not_taken: list[str]) -> FrontReport:
    return replace(report, not_taken=tuple(not_taken))


def _load_tried(
    files: FrontFiles,
    provider: ExecutionProvider,
    limit_bytes: int | None,
    options: dict[str, Any],
) -> LoadedFront:
    """Load it with this provider and try it. The CPU's front is loaded before, and freed."""
    edge_dir, plan, choice = files
    on_cpu = FrontEngine.load(edge_dir, plan=plan, **{**options, "count": 1})[0]
    token_ids = some_tokens(on_cpu, plan)
    expected = tried_rows(on_cpu, token_ids)
    del on_cpu
    trim_heap()
    halves = provider.runs_halves and choice.rows is not None
    engines = FrontEngine.load(edge_dir, plan=plan, provider=provider, halves=halves, **options)
    rows = tried_rows(engines[0], token_ids)
    if not np.array_equal(rows, tried_rows(engines[0], token_ids)):
        raise FrontError(
            f"{provider.name}: the same tokens gave other rows the second time, and what is sent "
            "again would differ; use --provider cpu"
        )
    difference = row_difference(rows, expected)
    if not difference <= MOST_DIFFERENCE:  # also when it is no number
        raise FrontError(
            f"{provider.name}: its rows are {100 * difference:.2g} % from the CPU's, and at most "
            f"{100 * MOST_DIFFERENCE:g} % can be rounding; use --provider cpu"
        )
    if limit_bytes is not None:
        check_loaded(limit_bytes, plan, provider=provider.name, sequences=len(engines))
    placement = merged(engines[0].placements)
    report = FrontReport(
        provider=provider.name,
        num_nodes=placement.num_nodes,
        on_cpu=placement.on_cpu,
        is_known=placement.is_known,
        row_difference=difference,
        arithmetic="fp16" if halves else "fp32" if plan.partition.front_bits == 16 else "",
        widened=_why_widened(provider, choice, plan),
        depends_on_cut=provider.depends_on_cut,
    )
    return LoadedFront(engines, report)


def _why_widened(provider: ExecutionProvider, choice: HalfChoice, plan: Plan) -> str:
    """Why 16-bit weights are widened with this provider; empty where they are not."""
    if plan.partition.front_bits != 16 or (provider.runs_halves and choice.rows is not None):
        return ""
    if choice.rows is None:
        return choice.why_not or "the bundle has no 16-bit graph"
    return f"{provider.name} is not known to compute in 16 bits"
