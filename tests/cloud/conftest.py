"""The bundle and the model that the server's tests share, made once a file."""

from __future__ import annotations

import pytest

from tests.cloud.serving import Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(tmp_path_factory.mktemp("served"))
