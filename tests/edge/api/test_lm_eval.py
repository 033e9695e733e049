"""lm-eval runs a generation task and a log-likelihood task on local rows, through the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.api.server import ApiConfig
from edge.client import EdgeClient
from tests.conftest import ModelBench
from tests.edge.api.running import running_api
from tests.end_to_end.servers import RunningServer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def url(bench: ModelBench, server: RunningServer) -> Iterator[str]:
    with (
        EdgeClient(bench.edge_bundle(2), server.address) as client,
        running_api(client, ApiConfig(port=0)) as base,
    ):
        yield base


def task(name: str, rows: Path, kind: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
        "output_type": kind,
    }


def test_both_kinds_of_tasks_give_scores(
    bench: ModelBench, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra clients)")
    models = pytest.importorskip("lm_eval.models.openai_completions")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one", "answer": " two"}\n{"text": "a", "answer": " b c"}\n')
    generating = task("local_gen", rows, "generate_until")
    generating["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": 4, "temperature": 0}
    generating["metric_list"] = [{"metric": "exact_match"}]
    scoring = task("local_ll", rows, "loglikelihood")
    scoring["metric_list"] = [{"metric": "perplexity"}, {"metric": "acc"}]
    model = models.LocalCompletionsAPI(
        base_url=f"{url}/v1/completions",
        model="any",
        tokenizer=str(tokenizer_folder(bench, tmp_path)),
        tokenizer_backend="huggingface",
        max_length=200,
    )
    results = lm_eval.simple_evaluate(model=model, tasks=[generating, scoring], bootstrap_iters=0)
    assert results["results"]["local_gen"]["exact_match,none"] >= 0
    assert results["results"]["local_ll"]["perplexity,none"] > 1


def tokenizer_folder(bench: ModelBench, tmp_path: Path) -> Path:
    """The model's tokenizer as lm-eval loads it."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "tokenizer"
    path = bench.edge_bundle(2) / "edge" / "tokenizer.json"
    made = PreTrainedTokenizerFast(tokenizer_file=str(path), eos_token="</s>", pad_token="</s>")
    made.save_pretrained(folder)
    return folder
