"""What `splitpoint model inspect` shows: a table for people, one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from splitpoint.views.screen import open_console
from splitpoint.views.sizes import size_text

if TYPE_CHECKING:
    from optimizer.artifacts.geometry import ModelGeometry
    from optimizer.export.sources.inspection import ModelReport

KV_BITS = (32, 16, 8)


def next_command(report: ModelReport) -> str:
    """What to type next: a build where everything is there, a plan where only the config is."""
    if report.can_build and report.format != "config only":
        layers = report.geometry.num_layers if report.geometry else 3
        return f"splitpoint build --model {report.path} --split {layers // 3} --out bundle"
    planned = all(support.works for support in report.supports if support.what != "weights")
    if planned and report.geometry is not None:
        return f"splitpoint plan --model {report.path} --edge EDGE --cloud CLOUD --link LINK"
    return ""


def model_json(report: ModelReport) -> dict[str, Any]:
    """The report as plain values, with what follows from them."""
    out = asdict(report)
    out["can_build"] = report.can_build
    out["kv_bytes_a_token"] = kv_bytes(report.geometry)
    if report.build is not None:
        out["build"]["total_bytes"] = report.build.total_bytes
    if report.part_bytes is not None:
        out["part_bytes"]["total"] = report.part_bytes.total
    out["next"] = next_command(report)
    return out


def kv_bytes(geometry: ModelGeometry | None) -> dict[str, int]:
    """Bytes of one token's keys and values in all layers, by bits of a value."""
    if geometry is None:
        return {}
    return {
        str(bits): geometry.kv_bytes(num_layers=geometry.num_layers, num_tokens=1, kv_bits=bits)
        for bits in KV_BITS
    }


def show_model(report: ModelReport) -> None:
    """Print the report for people."""
    table = Table(title=report.path, title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for what, found in _rows(report):
        table.add_row(what, found)
    open_console().print(table)


def _rows(report: ModelReport) -> Iterator[tuple[str, str]]:
    yield "family", f"{report.family or 'unknown'} ({report.architecture}, {report.model_type})"
    yield "format", report.format + (f", {report.quantization}" if report.quantization else "")
    if report.types:
        yield "stored types", ", ".join(f"{kind} x{n}" for kind, n in report.types.items())
    if report.num_parameters is not None:
        yield "parameters", f"{report.num_parameters:,}"
    if report.geometry is not None:
        yield from _geometry_rows(report.geometry)
    yield "positions", report.positions
    if report.part_bytes is not None:
        parts = report.part_bytes
        yield (
            "bytes" if parts.stored else "bytes (foretold)",
            f"{size_text(parts.total)}: embedding {size_text(parts.embedding)}, "
            f"layers {size_text(parts.layers)}, head {size_text(parts.head)}, "
            f"rest {size_text(parts.other)}",
        )
    if report.build is not None:
        build = report.build
        yield "memory of a build", f"{size_text(build.total_bytes)}, most of it in {build.largest}"
    for support in report.supports:
        word = "yes" if support.works else "no"
        yield support.what, f"{word}: {support.reason}" if support.reason else word
    for note in report.notes:
        yield "note", note
    if command := next_command(report):
        yield "next", command


def _geometry_rows(geometry: ModelGeometry) -> Iterator[tuple[str, str]]:
    yield (
        "layers",
        f"{geometry.num_layers} of width {geometry.hidden_size}, "
        f"{geometry.num_heads} heads ({geometry.num_kv_heads} KV) of {geometry.head_dim}, "
        f"inner width {geometry.intermediate_size}",
    )
    tied = "the head is the embedding" if geometry.tied_embeddings else "a head of its own"
    yield "vocabulary", f"{geometry.vocab_size:,} tokens, {tied}"
    window = ""
    if geometry.sliding_window is not None:
        count = len(geometry.sliding_layers) or geometry.num_layers
        window = f", {count} layers see the last {geometry.sliding_window}"
    yield "longest text", f"{geometry.context_length:,} tokens{window}"
    sizes = ", ".join(f"{size_text(n)} at {bits} bits" for bits, n in kv_bytes(geometry).items())
    yield "KV cache a token", sizes
