"""The engine on a GPU gives what the CPU's gives: what `benchmarks/gpu_check.sh` compares."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_every_family_draws_the_cpus_tokens_at_every_split() -> None:
    from benchmarks.server.gpu_machine import CudaMachine
    from benchmarks.server.gpu_parity import (
        FAMILIES,
        FULL_PARITY,
        check_draws,
        check_family,
        check_products,
    )

    machine = CudaMachine()
    found = check_draws(machine) | check_products(machine)
    for family in FAMILIES:
        found |= check_family(machine, FULL_PARITY, family)
    assert [name for name, holds in found.items() if holds is False] == []
    assert found["llama: layers in kernels"] > 0
    assert found["llama: graphs"] > 0
