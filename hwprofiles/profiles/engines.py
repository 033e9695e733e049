"""What runs the kernels that a device profile has figures of."""

from __future__ import annotations

from typing import Final, Literal

from hwprofiles.providers.table import ProviderName

Engine = Literal[
    "onnxruntime-cpu",
    "onnxruntime-cuda",
    "onnxruntime-openvino",
    "onnxruntime-xnnpack",
    "onnxruntime-qnn",
    "onnxruntime-coreml",
    "torch-cpu",
    "torch-cuda",
]

# An edge's, by execution provider.
EDGE_ENGINES: Final[dict[ProviderName, Engine]] = {
    "cpu": "onnxruntime-cpu",
    "cuda": "onnxruntime-cuda",
    "openvino": "onnxruntime-openvino",
    "xnnpack": "onnxruntime-xnnpack",
    "qnn": "onnxruntime-qnn",
    "coreml": "onnxruntime-coreml",
}
