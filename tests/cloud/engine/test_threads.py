"""The server's threads: what was asked for, else no more than the CPUs that may be used."""

from __future__ import annotations

import pytest
import torch

from cloud.engine import threads


def test_a_quota_caps_the_threads_that_nobody_asked_for(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    torch.set_num_threads(4)
    monkeypatch.setattr(threads, "usable_cpus", lambda: 2)
    assert threads.use_threads() == 2
    assert threads.use_threads(3) == 3
    monkeypatch.setattr(threads, "usable_cpus", lambda: 64)
    assert threads.use_threads() == 3
