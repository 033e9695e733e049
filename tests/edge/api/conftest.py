"""A device whose model knows tools, and its local API. Some modules have a device of their own."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from edge.api.server import ApiConfig
from edge.client import EdgeClient
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.edge.api.tool_model import tool_client
from tests.end_to_end.servers import RunningServer


@pytest.fixture(scope="module")
def edge(bench: ModelBench, server: RunningServer) -> Iterator[EdgeClient]:
    with tool_client(bench, server) as client:
        yield client


@pytest.fixture(scope="module")
def url(edge: EdgeClient) -> Iterator[str]:
    with running_api(edge, ApiConfig(port=0, concurrency=2)) as base:
        yield base


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made
