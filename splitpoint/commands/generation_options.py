"""Options that `run` and `chat` share, and the client they make."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decoding.params import SamplingParams
from edge.errors import InputError

if TYPE_CHECKING:
    from edge.client import EdgeClient

BundleArgument = Annotated[
    Path, typer.Argument(help="Bundle folder made by 'splitpoint build'.", show_default=False)
]
ServerOption = Annotated[
    list[str] | None,
    typer.Option(
        "--server", help="HOST:PORT of the cloud server; give more to fall back on.", metavar="H:P"
    ),
]
MaxNewTokensOption = Annotated[int, typer.Option(help="Most tokens to generate.", min=1)]
TemperatureOption = Annotated[float, typer.Option(help="0: greedy.", min=0.0)]
TopPOption = Annotated[float, typer.Option(help="Nucleus sampling; 1: off.")]
TopKOption = Annotated[int, typer.Option(help="Keep the K likeliest tokens; 0: off.", min=0)]
MinPOption = Annotated[float, typer.Option(help="Drop below this share of the top; 0: off.")]
PenaltyOption = Annotated[float, typer.Option(help="Repetition penalty; 1: off.")]
SeedOption = Annotated[int, typer.Option(help="Same seed, same tokens.", min=0)]
StopOption = Annotated[list[str] | None, typer.Option("--stop", help="Stop at this text.")]
LevelOption = Annotated[
    str, typer.Option(help="Compression level: auto (the plan's), a name, or a number.")
]
DraftOption = Annotated[
    str, typer.Option(help="Guess ahead across the round trip: auto, off, or ngram.")
]
ThreadsOption = Annotated[
    int | None, typer.Option(help="Threads of the front's kernels (default: one a core).", min=1)
]
CaOption = Annotated[
    Path | None, typer.Option("--tls-ca", help="CA certificate of the server: turns TLS on.")
]
CertOption = Annotated[Path | None, typer.Option("--tls-cert", help="Client certificate (mTLS).")]
KeyOption = Annotated[Path | None, typer.Option("--tls-key", help="Client key (mTLS).")]
TokenFileOption = Annotated[
    Path | None, typer.Option("--token-file", help="File with the access token.")
]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", help="Write one JSON line a frame to this file.")
]


def sampling_params(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    logprobs: bool = False,
) -> SamplingParams:
    """The options as checked parameters; a bad one is bad usage."""
    try:
        return SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            logprobs=logprobs,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def open_client(
    stack: ExitStack,
    bundle: Path,
    server: list[str] | None,
    *,
    threads: int | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
    trace: Path | None,
) -> EdgeClient:
    """An EdgeClient that lives as long as `stack`."""
    from edge.client import EdgeClient
    from edge.grpc_transport import Credentials

    credentials = Credentials(
        ca_file=ca,
        cert_file=cert,
        key_file=key,
        token=None if token_file is None else read_token(token_file),
    )
    sink = None if trace is None else stack.enter_context(trace.open("w"))
    return stack.enter_context(
        EdgeClient(bundle, server, credentials=credentials, threads=threads, trace=sink)
    )


def read_token(path: Path) -> str:
    """The access token: the file's only line."""
    token = path.read_text().strip()
    if not token or len(token.split()) != 1:
        raise InputError(f"{path}: must hold one access token and nothing else")
    return token
