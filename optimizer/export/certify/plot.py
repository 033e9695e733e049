"""The chart of a certificate: KL divergence over bits per element."""

from __future__ import annotations

from pathlib import Path

from optimizer.errors import BuildError
from optimizer.export.certify.certificate import Certificate, LevelQuality


def plot_certificate(certificate: Certificate, path: Path) -> None:
    """Write a PNG. Raises BuildError when matplotlib is not installed."""
    title = f"split {certificate.split}, {certificate.num_tokens} tokens"
    plot_levels({"levels": certificate.levels}, path, title=title)


def plot_levels(groups: dict[str, tuple[LevelQuality, ...]], path: Path, *, title: str) -> None:
    """Write a PNG with a line for each group. Lossless levels are left out: the KL axis is
    logarithmic. Raises BuildError when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BuildError("plots need matplotlib (pip install matplotlib)") from error
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for name, levels in groups.items():
        shown = sorted((q.bits_per_element, q.kl, q.name) for q in levels if q.kl > 1e-6)
        axes.plot([q[0] for q in shown], [q[1] for q in shown], marker="o", ms=4, label=name)
        if len(groups) == 1:
            for bits, kl, label in shown:
                axes.annotate(label, (bits, kl), textcoords="offset points", xytext=(4, 4))
    axes.set_yscale("log")
    axes.set_xlabel("bits an element, one-token frames, everything counted")
    axes.set_ylabel("KL from the untouched model, nats a token")
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
    if len(groups) > 1:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
