"""Weights that were never quantized: stories260K tells its golden story through the split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.client import EdgeClient
from optimizer.export.sources.model_source import open_source
from tests.conftest import ModelBench
from tests.end_to_end.servers import running_server
from tests.end_to_end.test_split_equals_whole import answer
from tests.examples.test_convert_stories260k import load_example
from tests.local_data import shared_data


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    text = (shared_data("models/stories260k") / "golden.json").read_text()
    values: dict[str, Any] = json.loads(text)
    return values


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> ModelBench:
    root: Path = tmp_path_factory.mktemp("stories260k")
    load_example().convert(shared_data("models/stories260k"), root / "model")
    return ModelBench(open_source(root / "model"), root)


def test_the_golden_story_comes_out_of_every_split(
    stories: ModelBench, golden: dict[str, Any]
) -> None:
    expected = golden["greedy_ids_from_bos"]
    with running_server(stories.cloud_bundle(max_tokens=300)) as server:
        for split in range(stories.num_layers + 1):
            bundle = stories.edge_bundle(split, max_tokens=300)
            with EdgeClient(bundle, server.address) as client:
                tokens, _ = answer(client, expected[:1], len(expected) - 1)
            assert [*expected[:1], *tokens] == expected, f"split {split}"
