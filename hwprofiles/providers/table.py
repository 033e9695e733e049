"""The execution providers that a front can run on. Loads nothing: ONNX Runtime is asked elsewhere.

A provider is one way in which ONNX Runtime runs a graph. An installed ONNX Runtime has some of
them, and always the CPU's. Two packages that bring one overwrite each other's files, so a machine
has one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

AUTO: Final = "auto"

TensorDevice = Literal["cpu", "cuda"]
ProviderName = Literal["cpu", "cuda", "openvino", "xnnpack", "qnn", "coreml"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionProvider:
    """One provider.

    name: as `--provider` has it. runtime_name: as ONNX Runtime has it. remedy: what brings it.
    library: of the shared library that ONNX Runtime loads for it ("" for none). device: where
    tensors that stay between steps lie, as ONNX Runtime calls it. in_auto: whether `auto` may take
    it without being told. depends_on_cut: whether a row's bits may depend on how a prompt is
    cut into chunks of two rows and more. It is False only where that was measured
    (docs/results/edge.md). runs_halves: whether it computes products of 16-bit numbers in 16 bits,
    by its documentation; the CPU's is asked (`hwprofiles.profiler.half_probe`). options: of a
    session with so many threads.
    """

    name: ProviderName
    runtime_name: str
    remedy: str
    library: str = ""
    device: TensorDevice = "cpu"
    in_auto: bool = False
    depends_on_cut: bool = True
    runs_halves: bool = False
    options: Callable[[int], dict[str, str]] = lambda _threads: {}


def _cuda(_threads: int) -> dict[str, str]:
    return {"use_tf32": "0"}  # products of 32-bit numbers stay of 32 bits


def _openvino(threads: int) -> dict[str, str]:
    # Without a precision it computes in bfloat16 where the processor has units for that.
    return {"num_of_threads": str(threads), "precision": "FP32"}


def _xnnpack(threads: int) -> dict[str, str]:
    return {"intra_op_num_threads": str(threads)}


def _qnn(_threads: int) -> dict[str, str]:
    return {"backend_path": "libQnnHtp.so"}


CPU: Final = ExecutionProvider(
    name="cpu",
    runtime_name="CPUExecutionProvider",
    remedy="pip install 'splitpoint[edge]'",
    depends_on_cut=False,
)
CUDA: Final = ExecutionProvider(
    name="cuda",
    runtime_name="CUDAExecutionProvider",
    remedy="pip uninstall onnxruntime, then pip install onnxruntime-gpu (x86-64; for a Jetson "
    "docs/guides/jetson.md)",
    library="cuda",
    device="cuda",
    in_auto=True,
    runs_halves=True,
    options=_cuda,
)
OPENVINO: Final = ExecutionProvider(
    name="openvino",
    runtime_name="OpenVINOExecutionProvider",
    remedy="pip uninstall onnxruntime, then pip install onnxruntime-openvino",
    library="openvino",
    options=_openvino,
)
XNNPACK: Final = ExecutionProvider(
    name="xnnpack",
    runtime_name="XnnpackExecutionProvider",
    remedy="no package of the index has it; build ONNX Runtime with --use_xnnpack",
    options=_xnnpack,
)
QNN: Final = ExecutionProvider(
    name="qnn",
    runtime_name="QNNExecutionProvider",
    remedy="build ONNX Runtime with --use_qnn and Qualcomm's SDK; the plug-in package "
    "onnxruntime-qnn is not loaded",
    library="qnn",
    options=_qnn,
)
COREML: Final = ExecutionProvider(
    name="coreml",
    runtime_name="CoreMLExecutionProvider",
    remedy="only ONNX Runtime for macOS and iOS has it",
)

PROVIDERS: Final[dict[str, ExecutionProvider]] = {
    each.name: each for each in (CPU, CUDA, OPENVINO, XNNPACK, QNN, COREML)
}
CHOICES: Final = (AUTO, *PROVIDERS)
