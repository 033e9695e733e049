"""onnxruntime-genai's model builder, run on a small checkpoint that holds the front alone."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from optimizer.artifacts.bundle import FRONT_NAME
from optimizer.artifacts.plan import Plan
from optimizer.errors import BuildError
from optimizer.export.front.kv_scales import write_kv_scales
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.sources.tensor_names import HEAD_NAME, layer_of

logger = logging.getLogger(__name__)

# At 16 bits the matrices are stored in float16 afterwards: the exporter's own fp16 graph has no
# fused attention for CPUs.
PRECISION: Final = "fp32"


def stage_checkpoint(source: ModelSource, plan: Plan, folder: Path) -> Path:
    """Write a checkpoint of the front into `folder`/model: its tensors, and a config without the
    layers above the split. Returns the checkpoint's folder.

    Raises ModelError for values that are not finite, or not in the type that the plan asks for."""
    folder = folder / "model"
    folder.mkdir()
    split = plan.partition.split
    config = copy.deepcopy(source.config)
    if not plan.edge_is_whole:
        config.num_hidden_layers = split
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:split]
        config.tie_word_embeddings = True  # no head is exported: ask for none
    config.save_pretrained(folder)
    source.load_tokenizer().save_pretrained(folder)
    narrowest = torch.float16 if plan.partition.front_bits == 16 else torch.float32
    tensors = {
        name: source.read(name, fits=narrowest).contiguous()
        for name in sorted(source.tensor_names)
        if _belongs_to_front(name, split, plan.edge_is_whole)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _belongs_to_front(name: str, split: int, whole: bool) -> bool:
    layer = layer_of(name)
    if layer is not None:
        return layer < split
    return whole or not name.startswith(HEAD_NAME.removesuffix(".weight"))


def _builder_options(plan: Plan, staged: Path) -> list[str]:
    options = [f"filename={FRONT_NAME}", "hf_token=false", "shared_embeddings=false"]
    options.append("prune_lm_head=true" if plan.edge_is_whole else "exclude_lm_head=true")
    if plan.kv_bits == 8:
        scales = staged.parent / "kv_scales.json"
        write_kv_scales(staged, scales)
        options += ["kv_cache_quant_scheme=int8_per_channel", f"kv_cache_scale_file={scales}"]
    return options


def export_graph(plan: Plan, staged: Path, exported: Path, cache: Path) -> None:
    """Export the staged checkpoint as `front.onnx` in float32 into the folder `exported`.

    cache: a folder for the exporter's own files. Raises BuildError when the exporter fails.
    """
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    options = _builder_options(plan, staged)
    arguments = ("", str(staged), str(exported), PRECISION, "cpu", str(cache))
    with _quietly() as printed:
        try:
            create_model(*arguments, **parse_extra_options(*arguments, options))
        except Exception as error:  # whatever the builder's parts raise
            logger.debug("the exporter printed: %s", printed.getvalue())
            raise BuildError(f"the exporter failed: {type(error).__name__}: {error}") from error
    logger.debug("the exporter printed: %s", printed.getvalue())


@contextlib.contextmanager
def _quietly() -> Iterator[io.StringIO]:
    """Keep the exporter's output and progress bars off the screen, for the debug log."""
    from transformers.utils import logging as transformers_logging

    printed = io.StringIO()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    quantizer = logging.getLogger("onnxruntime.quantization")
    quantizer.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed
    finally:
        transformers_logging.set_verbosity(level)
