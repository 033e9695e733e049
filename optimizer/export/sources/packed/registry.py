"""Which quantization methods are read, by the name that a config.json gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from optimizer.errors import ModelError
from optimizer.export.sources.packed.assembly import PackedFormat
from optimizer.export.sources.packed.awq import awq_format
from optimizer.export.sources.packed.compressed import compressed_format
from optimizer.export.sources.packed.gptq import gptq_format
from optimizer.export.sources.packed.mxfp4 import mxfp4_format
from optimizer.export.sources.packed.scaled import fp8_format

FormatMaker = Callable[[Mapping[str, Any], str], PackedFormat]

FORMATS: Final[Mapping[str, FormatMaker]] = {
    "gptq": gptq_format,
    "awq": awq_format,
    "compressed-tensors": compressed_format,
    "fp8": fp8_format,
    "fbgemm_fp8": fp8_format,
    "mxfp4": mxfp4_format,
}


def format_of(method: str, settings: Mapping[str, Any], where: str) -> PackedFormat:
    """The format of a config's section.

    Raises ModelError for a method that is not read, and for a kind of a method that is not.
    """
    maker = FORMATS.get(method)
    if maker is None:
        raise ModelError(
            f"{where} says the weights are quantized ({method}), which is not read; "
            f"{', '.join(FORMATS)} are, or use a dequantized checkpoint "
            "(float32, float16 or bfloat16 weights)"
        )
    return maker(settings, where)
