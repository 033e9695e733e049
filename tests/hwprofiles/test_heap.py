"""Freed memory goes back to the system when it is asked for."""

from __future__ import annotations

import psutil
import pytest

from hwprofiles.heap import can_trim, trim_heap


@pytest.mark.skipif(not can_trim(), reason="glibc's allocator")
def test_trimming_gives_freed_blocks_back() -> None:
    process = psutil.Process()
    blocks = [bytes(50_000) for _ in range(4000)]  # 200 MB in blocks that are not mapped
    kept = blocks[-1]
    held = process.memory_info().rss
    del blocks
    trim_heap()
    assert process.memory_info().rss < held - 150_000_000
    assert len(kept) == 50_000
