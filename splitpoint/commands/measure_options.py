"""Options about what was measured: a log of it, and the predictions beside it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from splitpoint.commands.choices import completed, device_profiles, link_profiles
from splitpoint.views.output import print_json
from splitpoint.views.screen import open_console

if TYPE_CHECKING:
    from edge.client import EdgeClient
    from edge.generation.report import Completion
    from optimizer.cost.money import Prices
    from optimizer.measured.predict import PredictionBasis
    from optimizer.measured.record import Program
    from splitpoint.commands.generation_options import DeviceOptions
    from splitpoint.commands.plan_options import DeploymentOptions, EvidenceOptions
    from splitpoint.explaining import ComparedAnswer

PROFILE_OPTIONS = "--edge-profile, --cloud-profile and --link-profile"


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Whether a log is kept."""

    PANEL: ClassVar = "Measurements"

    measure: Annotated[
        Path | None,
        typer.Option(
            help="Append what each answer took to this log, for 'profile refine' and 'plan "
            "--check': figures alone, no text and no token ids.",
            metavar="FILE",
        ),
    ] = None

    def open_client(
        self,
        device: DeviceOptions,
        stack: ExitStack,
        bundle: Path,
        *,
        program: Program,
        **options: Any,
    ) -> EdgeClient:
        """`DeviceOptions.open_client`, and a log of its generations where one is kept.

        MeasurementError for a file that cannot be written, before anything is loaded.
        """
        if self.measure is None:
            return device.open_client(stack, bundle, **options)
        from splitpoint.recording import GenerationRecorder

        recorder = GenerationRecorder(self.measure, program)
        client = device.open_client(stack, bundle, on_finished=recorder, **options)
        recorder.watch(client)
        return client


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(MeasureOptions):
    """The same, and whether predictions are shown beside what was measured."""

    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show what was predicted beside what was measured. Predicted by the plan, or by "
            f"{PROFILE_OPTIONS}.",
        ),
    ] = False
    edge_profile: Annotated[
        str | None,
        typer.Option(
            help="With --explain: predict with this device profile.",
            autocompletion=completed(device_profiles),
        ),
    ] = None
    cloud_profile: Annotated[
        str | None,
        typer.Option(
            help="With --explain: the server's profile.", autocompletion=completed(device_profiles)
        ),
    ] = None
    link_profile: Annotated[
        str | None,
        typer.Option(
            help="With --explain: the link, as for 'plan'.", autocompletion=completed(link_profiles)
        ),
    ] = None

    def check(self) -> None:
        """BadParameter where profiles are given and not used, or not all of them."""
        given = [self.edge_profile, self.cloud_profile, self.link_profile]
        named = sum(item is not None for item in given)
        if named and not self.explain:
            raise typer.BadParameter(f"{PROFILE_OPTIONS} go with --explain")
        if named not in (0, len(given)):
            raise typer.BadParameter(f"give all of {PROFILE_OPTIONS}, or none")

    def basis(self, client: EdgeClient, bundle: Path) -> PredictionBasis | None:
        """What predictions are made from; None: the plan's own are shown, or none at all.

        MeasurementError where the plan has none; ProfileError for no such profile.
        """
        if not self.explain:
            return None
        from optimizer.errors import MeasurementError
        from splitpoint.explaining import basis_of

        profiles = (self.edge_profile, self.cloud_profile, self.link_profile)
        if profiles[0] is None:
            if client.plan.predicted is None:
                raise MeasurementError(
                    "--explain: the bundle's plan has no predictions (it was made from flags); "
                    f"give {PROFILE_OPTIONS}"
                )
            return None
        edge, cloud, link = (name or "" for name in profiles)
        return basis_of(client.plan.model, edge=edge, cloud=cloud, link=link, certificates=[bundle])

    def compared(
        self, completion: Completion, client: EdgeClient, basis: PredictionBasis | None
    ) -> ComparedAnswer | None:
        """Predicted beside measured; None where it was not asked for."""
        if not self.explain:
            return None
        from optimizer.errors import MeasurementError
        from splitpoint.explaining import compare_completion

        try:
            return compare_completion(completion, client, basis)
        except MeasurementError as error:  # the answer stands all the same
            typer.echo(f"splitpoint: {error}", err=True)
            return None

    def show(self, found: ComparedAnswer | None) -> None:
        """The table on stderr, beside the answer's summary."""
        if found is not None and found.figures:
            from splitpoint.views.measured_view import compared_line, print_compared

            console = open_console(stderr=True)
            print_compared(console, found.figures, title="Predicted and measured")
            console.print(compared_line(found.figures, found.note), highlight=False)


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Whether predictions are held against a log, in place of planning."""

    PANEL: ClassVar = "Check predictions"

    check_log: Annotated[
        Path | None,
        typer.Option(
            "--check",
            help="Plan nothing: say which predictions of these profiles held in this log "
            "(--measure).",
            metavar="FILE",
        ),
    ] = None
    strict: Annotated[
        bool, typer.Option("--strict", help="With --check: exit with 1 where one missed by 20 %.")
    ] = False

    def report(
        self,
        path: Path,
        deployment: DeploymentOptions,
        evidence: EvidenceOptions,
        prices: Prices,
        *,
        as_json: bool,
    ) -> None:
        """Print every configuration of the log. typer.Exit where `strict` finds a miss."""
        from splitpoint.explaining import basis_of, check_log
        from splitpoint.plan_inputs import model_ref
        from splitpoint.views.measured_view import checked_json, print_checked

        model = model_ref(deployment.model)
        basis = basis_of(
            model,
            edge=deployment.edge,
            cloud=deployment.cloud,
            link=deployment.link,
            certificates=evidence.certificate or [],
            epsilon=deployment.epsilon,
            prices=prices,
        )
        found = check_log(path, model, basis)
        if as_json:
            print_json(checked_json(found))
        else:
            print_checked(found)
        missed = any(row.verdict == "missed" for item in found for row in item.figures)
        if self.strict and missed:
            raise typer.Exit(1)
