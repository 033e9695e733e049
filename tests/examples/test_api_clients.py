"""The examples of other projects' clients, against a real `splitpoint api` process."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.conftest import ModelBench
from tests.edge.api.tool_model import tool_bundle
from tests.end_to_end.servers import RunningServer
from tests.examples.loading import example
from tests.hostile.processes import api_process

KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def arguments(
    bench: ModelBench, server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """The API's URL and a key."""
    folder = tmp_path_factory.mktemp("api")
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    with (
        tool_bundle(bench) as bundle,
        api_process(
            bundle, server.address, "--api-key-file", str(keys), log_path=folder / "log"
        ) as api,
    ):
        yield [f"http://{api.address}/v1", KEY]


def test_langchain_parses_calls_and_streams(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    needs("langchain_openai")
    assert example("langchain_client").main(arguments) == 0
    structured, called, *streamed = capsys.readouterr().out.splitlines()
    assert structured.startswith("structured: Verdict(is_true=")
    assert "-> the lamp is o" in called
    assert streamed[0].startswith("stream: ")


@pytest.mark.filterwarnings("ignore")
def test_litellm_answers_streams_and_keeps_to_a_schema(
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs("litellm")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no list of prices from elsewhere
    assert example("litellm_client").main(arguments) == 0
    said = capsys.readouterr().out
    whole, rest = said.removeprefix("whole: ").split("\nstream: ")
    streamed, schema = rest.split("\nschema: ")
    assert streamed == whole
    assert schema.strip() in ("{'is_true': True}", "{'is_true': False}")


def needs(package: str) -> None:
    """Skip where a client is not installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extras dev and clients)")
