"""What a server process loads before any model; itself it loads nothing."""

from __future__ import annotations


def base_code(device: str) -> str:
    """Python for a fresh interpreter. device: "cpu", "cuda", or "auto" for CUDA if there."""
    lines = ["import torch, cloud.server.process"]
    if device != "cpu":
        asked = device == "cuda"
        lines.append(f"if {asked} or torch.cuda.is_available(): torch.zeros(1, device='cuda')")
    return "\n".join([*lines, ""])
