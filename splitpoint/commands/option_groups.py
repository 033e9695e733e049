"""Options that several commands share, written once as a dataclass.

    @dataclass(frozen=True, kw_only=True)
    class Sampling:
        PANEL: ClassVar = "What to generate"
        temperature: Annotated[float, typer.Option(help="0: greedy.")] = 0.0

    @with_options(temperature=0.2)
    def chat(bundle: Path, sampling: Sampling) -> None: ...

typer sees `chat` with an option `--temperature` (default 0.2); the function gets one `Sampling`.
`PANEL`, which may be left out, is the heading under which the help shows the options.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from hwprofiles.errors import ProviderError
from hwprofiles.providers.table import AUTO, CPU, PROVIDERS
from hwprofiles.providers.table import CHOICES as PROVIDER_CHOICES
from protos.addresses import Address, parse_address
from protos.errors import AddressError
from splitpoint.commands.choices import DEVICES, completed, one_of

if TYPE_CHECKING:
    from optimizer.export.sources.model_source import ModelSource

ResultT = TypeVar("ResultT")

# Options and arguments that look the same in every command.
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
BundleArgument = Annotated[
    Path, typer.Argument(help="Bundle folder made by 'splitpoint build'.", show_default=False)
]
ModelOption = Annotated[Path, typer.Option(help="Model folder or GGUF file.", show_default=False)]

DeviceOption = Annotated[
    str,
    typer.Option(
        help="What the model's layers compute on: auto, cpu or cuda.",
        autocompletion=completed(DEVICES),
    ),
]


ProviderOption = Annotated[
    str,
    typer.Option(
        help="What of ONNX Runtime runs the front: auto, cpu, cuda, openvino, xnnpack, qnn or "
        "coreml.",
        autocompletion=completed(PROVIDER_CHOICES),
    ),
]


def check_provider(name: str) -> str:
    """`name`. BadParameter for no provider, and for one that the installed ONNX Runtime lacks."""
    one_of(name, PROVIDER_CHOICES, "--provider")
    if name not in (AUTO, CPU.name):
        from hwprofiles.providers.sessions import require_listed

        try:
            require_listed(PROVIDERS[name])
        except ProviderError as error:
            raise typer.BadParameter(f"--provider {error}") from error
    return name


def compute_device(name: str) -> str:
    """The device that `--device` means. Raises bad usage for one that is not there."""
    one_of(name, DEVICES, "--device")
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            "torch finds no CUDA device here; choose cpu", param_hint="--device"
        )
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The model to read, with an adapter or without."""

    model: ModelOption
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder with a LoRA adapter of this model, merged as it is read."),
    ] = None

    def source(self) -> ModelSource:
        """The source of its weights. Raises ModelError."""
        from optimizer.export.sources.model_source import open_source

        return open_source(self.model, self.adapter)


def address_of(text: str, option: str, *, lowest_port: int = 0) -> Address:
    """The address given with `option`; bad usage when it is not HOST:PORT."""
    try:
        return parse_address(text, lowest_port=lowest_port)
    except AddressError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def given_options(context: typer.Context) -> frozenset[str]:
    """Names of the command's parameters that somebody gave: no default says the same."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(
        name for name, source in sources.items() if source is not None and source.name != "DEFAULT"
    )


def with_options(**defaults: Any) -> Callable[[Callable[..., ResultT]], Callable[..., ResultT]]:
    """Replace every parameter whose type is a dataclass by that dataclass's fields.

    defaults: other default values than the dataclass has, for this command. Raises TypeError for
    a default that belongs to no option.
    """

    def expand(function: Callable[..., ResultT]) -> Callable[..., ResultT]:
        hints = get_type_hints(function, include_extras=True)
        groups: dict[str, Any] = {}
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            group = hints[parameter.name]
            if not is_dataclass(group):
                parameters.append(parameter.replace(annotation=group))
                continue
            groups[parameter.name] = group
            parameters += _parameters_of(group, defaults)
        unknown = set(defaults) - {parameter.name for parameter in parameters}
        if unknown:
            raise TypeError(f"no option named {', '.join(sorted(unknown))}")

        @functools.wraps(function)
        def command(**given: Any) -> ResultT:
            for name, group in groups.items():
                given[name] = group(
                    **{
                        field.name: given.pop(field.name)
                        for field in fields(group)
                        if field.name in given
                    }
                )
            return function(**given)

        order = sorted(parameters, key=lambda parameter: parameter.default is not parameter.empty)
        command.__signature__ = inspect.Signature(order)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in order}
        return command

    return expand


def _parameters_of(group: Any, defaults: dict[str, Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=defaults.get(field.name, _default(field)),
            annotation=_in_panel(hints[field.name], getattr(group, "PANEL", None)),
        )
        for field in fields(group)
    ]


def _in_panel(annotation: Any, panel: str | None) -> Any:
    """The option under that heading. A copy: groups share options with commands that have none."""
    if panel is None or get_origin(annotation) is not Annotated:
        return annotation
    kind, *notes = get_args(annotation)
    for index, note in enumerate(notes):
        if isinstance(note, OptionInfo):
            notes[index] = copy.copy(note)
            notes[index].rich_help_panel = panel
    return Annotated[(kind, *notes)]


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
