"""What a model is and whether it can be built, told from its config and its files' headers.

No weight is read, so a model of any size answers at once. A folder that has only `config.json`
answers too: its bytes are those that the config's type would take.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from optimizer.artifacts.chat_template import ChatTemplate
from optimizer.artifacts.geometry import ModelGeometry
from optimizer.cost.build_memory import BuildMemory, build_memory
from optimizer.errors import ChatTemplateError, ModelError
from optimizer.export.sources.config_geometry import geometry_of, read_config
from optimizer.export.sources.expected_tensors import expected_tensors, make_skeleton
from optimizer.export.sources.model_source import ModelSource, open_source
from optimizer.export.sources.positions_text import positions_text
from optimizer.export.sources.safetensors_header import StoredTensor
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME, layer_of
from optimizer.families import back_family, family_of, front_family

DEFAULT_BYTES: Final = 2  # of a weight whose type nobody states


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Whether one thing works with this model. reason: why not, and what to do; or a remark."""

    what: str
    works: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartBytes:
    """Stored bytes by part. stored: whether files hold them, or the config foretells them."""

    embedding: int
    layers: int
    head: int
    other: int
    stored: bool

    @property
    def total(self) -> int:
        """All parts together."""
        return self.embedding + self.layers + self.head + self.other


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """All that `splitpoint model inspect` tells.

    geometry, num_parameters, part_bytes, build: None where the config tells too little. types: the
    stored types with their numbers of tensors.
    """

    path: str
    format: str
    family: str | None
    model_type: str
    architecture: str
    geometry: ModelGeometry | None
    num_parameters: int | None
    part_bytes: PartBytes | None
    types: dict[str, int]
    quantization: str | None
    positions: str
    supports: tuple[Support, ...]
    build: BuildMemory | None
    notes: tuple[str, ...] = ()

    @property
    def can_build(self) -> bool:
        """Whether every part of a build works."""
        return all(support.works for support in self.supports)


def inspect_model(path: Path) -> ModelReport:
    """Look at a model folder, a GGUF file, a `config.json`, or a folder with one of them.

    Raises ModelError where there is no config to read at all.
    """
    if path.name == "config.json":
        path = path.parent
    source: ModelSource | None = None
    fault = ""
    try:
        source = open_source(path)
        config = source.config
    except ModelError as error:
        fault = str(error)
        if not (path / "config.json").is_file():
            raise
        config = read_config(path / "config.json")
    stored: dict[str, StoredTensor] = {}
    if source is not None:
        try:
            stored = dict(source.stored_tensors())
            source.check()
        except ModelError as error:
            fault = str(error)
    shapes = _shapes(config, str(path))
    geometry = _geometry(config)
    part_bytes = _part_bytes(config, shapes, stored)
    return ModelReport(
        path=str(path),
        format="config only" if source is None else source.format,
        family=_family_name(config),
        model_type=str(config.model_type),
        architecture=str((config.architectures or ["unknown"])[0]),
        geometry=geometry,
        num_parameters=sum(_size(shape) for shape in shapes.values()) if shapes else None,
        part_bytes=part_bytes,
        types=source.stored_types() if source is not None and stored else {},
        quantization=None if source is None else source.quantization,
        positions=positions_text(config),
        supports=(
            _support("front on the device", lambda: front_family(config)),
            _support("back on the server", lambda: back_family(config)),
            Support(what="weights", works=not fault, reason=fault),
            *_tokenizer_support(source),
        ),
        build=_build(shapes, part_bytes, geometry),
        notes=() if source is None else source.notes,
    )


def _support(what: str, check: Any) -> Support:
    try:
        check()
    except ModelError as error:
        return Support(what=what, works=False, reason=str(error))
    return Support(what=what, works=True)


def _tokenizer_support(source: ModelSource | None) -> tuple[Support, ...]:
    if source is None:
        return ()
    try:
        files = source.tokenizer_files()
    except ModelError as error:
        return (Support(what="tokenizer", works=False, reason=str(error)),)
    tokenizer = Support(what="tokenizer", works=True)
    template = files.chat_template
    remark = "none: --prompt works, chats need a template" if template is None else ""
    if template is not None:
        try:
            ChatTemplate(template)
        except ChatTemplateError as error:
            remark = f"does not work here ({error}): --prompt works, chats are refused"
    # A build goes on without one, so this is a remark.
    return tokenizer, Support(what="chat template", works=True, reason=remark)


def _family_name(config: Any) -> str | None:
    family = family_of(config)
    return None if family is None else family.name


def _geometry(config: Any) -> ModelGeometry | None:
    try:
        return geometry_of(config)
    except (ModelError, AttributeError, KeyError, TypeError, ValueError):
        return None  # a config of another kind of model


def _shapes(config: Any, where: str) -> dict[str, tuple[int, ...]]:
    """The architecture's tensors, a tied head counted once; {} where transformers has no model."""
    try:
        expected = expected_tensors(make_skeleton(config, where))
    except ModelError:
        return {}
    return {name: shape for name, shape in expected.shapes.items() if name not in expected.optional}


def _part_bytes(
    config: Any, shapes: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]
) -> PartBytes | None:
    """Bytes by part: of the files where there are some, else of the config's type."""
    if stored:
        sizes = {name: tensor.num_bytes for name, tensor in stored.items()}
    elif shapes:
        kind = getattr(config, "dtype", None)
        each = getattr(kind, "itemsize", DEFAULT_BYTES)
        sizes = {name: each * _size(shape) for name, shape in shapes.items()}
    else:
        return None
    parts: Counter[str] = Counter()
    for name, num_bytes in sizes.items():
        parts[_part_of(name)] += num_bytes
    return PartBytes(
        embedding=parts["embedding"],
        layers=parts["layers"],
        head=parts["head"],
        other=parts["other"],
        stored=bool(stored),
    )


def _part_of(name: str) -> str:
    if layer_of(name) is not None:
        return "layers"
    stem = name.rpartition(".")[0]
    for part, whole in (("embedding", EMBEDDING_NAME), ("head", HEAD_NAME)):
        if stem.startswith(whole.rpartition(".")[0]):
            return part
    return "other"


def _build(
    shapes: dict[str, tuple[int, ...]],
    part_bytes: PartBytes | None,
    geometry: ModelGeometry | None,
) -> BuildMemory | None:
    if part_bytes is None or geometry is None or not shapes:
        return None
    layers: Counter[int] = Counter()
    for name, shape in shapes.items():
        layer = layer_of(name)
        if layer is not None:
            layers[layer] += _size(shape)
    return build_memory(
        list(layers.values()),
        embedding_bytes=part_bytes.embedding,
        head_bytes=part_bytes.head,
        hidden_size=geometry.hidden_size,
        vocab_size=geometry.vocab_size,
    )


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
