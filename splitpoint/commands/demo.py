"""`splitpoint demo`: fetch, profile, plan, build, serve, run a split, and show where time went."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

import typer
from rich.console import Console
from rich.text import Text

from splitpoint.commands.choices import completed, link_profiles
from splitpoint.commands.option_groups import with_options
from splitpoint.server_process import crossing, serving
from splitpoint.views.demo_tables import three_ways, time_table
from splitpoint.views.long_work import bytes_of, long_work
from splitpoint.views.screen import open_console
from splitpoint.views.sizes import check_seconds, parse_size, size_text, time_text

if TYPE_CHECKING:
    from edge.device.tokenizer import ChatMessage
    from edge.generation.report import Completion
    from hwprofiles.profiles.device import DeviceProfile
    from optimizer.artifacts.plan import Plan
    from optimizer.cost.link import LinkPoint
    from optimizer.export.sources.model_source import ModelSource
    from optimizer.search.problem import Objective

MODEL: Final = "smollm2-135m-instruct"
# Little text, which ships with the package, and predictions for fewer tokens: `build` takes twice
# as long, and its levels need 6 % fewer bits.
DEMO_CALIBRATION_TOKENS: Final = 2048
DEMO_KNOWN_TOKENS: Final = 16_384
DEMO_LEVEL: Final = "q2"
DEMO_PROMPT_TOKENS: Final = 48
MAX_TOKENS: Final = 1024
NEW_TOKENS: Final = 64
QUESTION: Final = "Explain in a few sentences why the sky is blue."
MOST_RTT_S: Final = 2.0
RAW_BYTES_PER_ELEMENT: Final = 2  # a hidden state as float16, without a codec


@dataclass(frozen=True, kw_only=True)
class EmulatedLinkOptions:
    """The link between both processes."""

    PANEL: ClassVar = "Link"

    link: Annotated[
        str,
        typer.Option(
            help="A link, such as 4g or wifi+internet, whose median rates are emulated.",
            autocompletion=completed(link_profiles),
        ),
    ] = "wifi"
    rtt: Annotated[
        float, typer.Option(help="The round trip, in seconds: how far the server is.", min=0.0)
    ] = 0.04

    def point(self) -> LinkPoint:
        """The link's state. BadParameter for a round trip in milliseconds."""
        check_seconds(self.rtt, "--rtt", MOST_RTT_S)
        from hwprofiles.links.catalog import load_link
        from optimizer.cost.link import link_at

        return replace(link_at(load_link(self.link), epsilon=0.5), rtt_s=self.rtt)


@with_options()
def demo(
    between: EmulatedLinkOptions,
    question: Annotated[str, typer.Option(help="What to ask the model.")] = QUESTION,
    split: Annotated[
        int | None,
        typer.Option(help="Layers on the edge (default: planned).", min=1, max=29),
    ] = None,
    edge_memory: Annotated[
        str, typer.Option(help="What the model may take on the edge.", metavar="SIZE")
    ] = "40MiB",
    folder: Annotated[Path, typer.Option(help="Where model and bundle go.")] = Path("work/demo"),
    models: Annotated[Path, typer.Option(help="Where fetched models go.")] = Path("models"),
) -> None:
    """Set everything up on this machine, run a real split over a link, show where the time went."""
    room_bytes = parse_size(edge_memory, "--edge-memory")
    point, link = between.point(), between.link
    from optimizer.export.sources.fetch import fetch_model
    from optimizer.export.sources.model_source import open_source

    screen = open_console(stderr=True)
    with long_work(f"fetching {MODEL}") as work:
        model = fetch_model(MODEL, models / MODEL, bytes_of(work))
    screen.print(f"model    {model}")

    started_s = time.monotonic()
    edge, cloud = _measured(folder)
    screen.print(f"profiles {folder}: this machine, twice, in {time.monotonic() - started_s:.0f} s")
    with long_work("reading the model"):
        source = open_source(model)
    question_put = _Question(source, edge, cloud, room_bytes, link, point)
    plan = question_put.plan(range(1, source.geometry.num_layers) if split is None else (split,))
    (folder / "plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    _say_plan(screen, plan, room_bytes)
    if split is None:
        fastest = question_put.plan(range(source.geometry.num_layers + 1), "tbt")
        _say_fastest(screen, fastest, plan)

    num_layers = source.geometry.num_layers
    whole = replace(question_put, room_bytes=1 << 40).plan((num_layers,))
    bundle = _built(source, plan, folder / "bundle", screen)
    del source
    with serving(bundle) as address, crossing(point, address) as across:
        screen.print(f"server   {address}, a process of its own")
        screen.print(
            f"link     {across}, emulated: {link}, {1e3 * point.rtt_s:.0f} ms round trip, "
            f"{8e-6 * point.up_bytes_per_s:.1f} Mbit/s up, "
            f"{8e-6 * point.down_bytes_per_s:.1f} Mbit/s down"
        )
        _ask(bundle, across, question, plan, whole, screen)


def _built(source: ModelSource, plan: Plan, bundle: Path, screen: Console) -> Path:
    """The bundle of the plan, built anew."""
    from cloud.engine.served_back import ServedBack
    from optimizer.export.bundle_builder import Calibration, build_bundle

    started_s = time.monotonic()
    with long_work("building", kept="the model and the profiles; 'demo' builds anew") as work:
        shutil.rmtree(bundle, ignore_errors=True)
        report = build_bundle(
            source,
            plan,
            bundle,
            progress=work.stage,
            share=work.share,
            calibration=Calibration(
                num_tokens=DEMO_CALIBRATION_TOKENS,
                writes=False,
                known_tokens=DEMO_KNOWN_TOKENS,
            ),
            open_back=ServedBack,
        )
    screen.print(
        f"bundle   {bundle}: {report.edge_bytes / 2**20:.0f} MiB for the edge, "
        f"{report.cloud_bytes / 2**20:.0f} MiB for the cloud, built in "
        f"{time.monotonic() - started_s:.0f} s"
    )
    return bundle


def _ask(
    bundle: Path, address: str, question: str, plan: Plan, whole: Plan, screen: Console
) -> None:
    """Put the question to the running server; print the text and where the time went."""
    from edge.client import EdgeClient
    from edge.generation.completion import CompletionRequest

    # This process has built the model too, so the plan's limit on an edge is not for it.
    with EdgeClient(bundle, address, memory_limit_bytes=sys.maxsize) as client:
        # Plain decoding, which is what the plan promises.
        request = CompletionRequest(max_new_tokens=NEW_TOKENS, draft="off")
        client.complete(question, CompletionRequest(max_new_tokens=4))  # warm up both sides
        screen.print(Text(f"\n{question}\n", style="bold"))
        asked: list[ChatMessage] = [{"role": "user", "content": question}]
        run = client.start(asked, request)
        for piece in run:
            typer.echo(piece.text, nl=False)
        typer.echo("\n")
        in_cloud = client.complete(asked, replace(request, prefer="cloud"))
    screen.print(time_table(run.completion))
    screen.print(three_ways(plan, run.completion, in_cloud, whole))
    _say_compression(screen, run.completion)
    if plan.predicted is not None:
        measured = run.completion.tbt_quantile_s(0.5)
        screen.print(
            f"planned  TBT {time_text(plan.predicted.tbt_s)} with each side on a machine of its "
            f"own; {time_text(measured)} here, where both share these cores"
        )


def _measured(folder: Path) -> tuple[DeviceProfile, DeviceProfile]:
    """This machine as an edge and as a server, measured quickly and kept in `folder`."""
    from hwprofiles.profiler.back_profiler import profile_server
    from hwprofiles.profiler.front_profiler import profile_device
    from hwprofiles.profiles.catalog import device_to_yaml
    from splitpoint.profiled_codec import ProfiledCodec
    from splitpoint.profiled_server import loaded_kernels

    kernels, base = loaded_kernels("cpu")

    folder.mkdir(parents=True, exist_ok=True)
    with long_work("measuring this machine", kept="the model is kept") as work:
        shares = {"edge": work.within(0.0, 0.5), "server": work.within(0.5, 1.0)}

        def tell(side: str, share: float, what: str) -> None:
            work.stage(f"{side}: {what}")
            shares[side](share)

        edge = profile_device(
            name="this-edge",
            quick=True,
            progress=partial(tell, "edge"),
            command="splitpoint demo",
            codec=ProfiledCodec(),
        )
        cloud = profile_server(
            kernels,
            name="this-server",
            quick=True,
            progress=partial(tell, "server"),
            command="splitpoint demo",
            codec=ProfiledCodec(),
            base=base,
        )
    for name, profile in (("edge", edge), ("server", cloud)):
        (folder / f"{name}.yaml").write_text(device_to_yaml(profile), encoding="utf-8")
    return edge, cloud


@dataclass(frozen=True, slots=True)
class _Question:
    """What the optimizer is asked, within the edge's memory: the least work for the server, or the
    least time between tokens. The model's weights are on a 4-bit grid already."""

    source: ModelSource
    edge: DeviceProfile
    cloud: DeviceProfile
    room_bytes: int
    link: str
    point: LinkPoint

    def plan(self, splits: Sequence[int], objective: Objective = "cloud-cost") -> Plan:
        """The best of these splits. PlanError where none fits."""
        from optimizer.artifacts.plan import ModelRef
        from optimizer.artifacts.prediction import Limits, ProfilesUsed
        from optimizer.cost.memory import edge_runtime_bytes
        from optimizer.errors import PlanError
        from optimizer.search.explain import binding_limits
        from optimizer.search.planner import Planner
        from optimizer.search.request import make_problem
        from optimizer.search.to_plan import plan_of

        geometry = self.source.geometry
        runtime_bytes = edge_runtime_bytes(self.edge, geometry, limited=True)
        memory_bytes = runtime_bytes + self.room_bytes
        problem = make_problem(
            geometry,
            self.edge,
            self.cloud,
            limits=Limits(edge_memory_bytes=memory_bytes, prompt_tokens=DEMO_PROMPT_TOKENS),
            objective=objective,
            max_tokens=min(MAX_TOKENS, geometry.context_length),
            front_bits=(4,),
            back_bits=(8,),
            levels=(DEMO_LEVEL,),
            splits=tuple(splits),
            back_from=0,  # so that the server can also run every layer alone
        )
        planner = Planner(problem)
        found = planner.solve(self.point)
        if found is None:
            raise PlanError(
                f"no split fits into {size_text(self.room_bytes)} beside the process itself"
            )
        return plan_of(
            found.grid,
            found.cell,
            model=ModelRef(id=self.source.id, sha256=self.source.sha256, geometry=geometry),
            profiles=ProfilesUsed(edge="edge.yaml", cloud="server.yaml", link=self.link),
            binding=binding_limits(planner, self.point, found),
        )


def _say_plan(screen: Console, plan: Plan, room_bytes: int) -> None:
    split, layers = plan.partition.split, plan.model.geometry.num_layers
    binding = f", bound by {' and '.join(plan.binding)}" if plan.binding else ""
    screen.print(
        f"plan     the least work for the server, with {size_text(room_bytes)} for the model on "
        f"the edge: layers 0-{split - 1} at "
        f"{plan.partition.front_bits} bits there, {split}-{layers - 1} and the head at "
        f"{plan.partition.back_bits} bits in the cloud, KV {plan.kv_bits} bits, level "
        f"{plan.level}{binding}"
    )


def _say_fastest(screen: Console, free: Plan, plan: Plan) -> None:
    """What the fastest plan would be, where that is no split."""
    layers = plan.model.geometry.num_layers
    if free.partition.split in range(1, layers):
        return
    where = "the server" if free.partition.split == 0 else "the device"
    times = [time_text(each.predicted.tbt_s) for each in (free, plan) if each.predicted is not None]
    screen.print(
        f"         (all layers on {where} would be faster for so small a model: TBT "
        f"{' against '.join(times)}. A split is for models that the device cannot hold, and for "
        "servers that should do less)"
    )


def _say_compression(screen: Console, completion: Completion) -> None:
    """Bytes of a decoded token's hidden state on the wire, and without the codec."""
    steps = [step for step in completion.steps if step.num_new_tokens and step.num_rows == 1]
    if not steps:
        return
    sent = sum(step.hidden_bytes for step in steps) / len(steps)
    raw = RAW_BYTES_PER_ELEMENT * completion.hidden_size
    screen.print(
        f"uplink   {sent:.0f} B a token for its hidden state of {completion.hidden_size} numbers; "
        f"{raw:,} B as float16 ({raw / sent:.1f} times as many)"
    )
