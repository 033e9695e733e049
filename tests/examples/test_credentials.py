"""The examples of both clients against a real server that asks for TLS and a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitpoint import EdgeError
from tests.conftest import ModelBench
from tests.examples.loading import example
from tests.hostile.processes import serve_process
from tests.tls_keys import make_keys, needs_openssl

pytestmark = needs_openssl
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module")
def arguments(
    bench: ModelBench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, ...]]:
    """BUNDLE, HOST:PORT and the options that name the credentials."""
    folder = tmp_path_factory.mktemp("credentials")
    keys = make_keys(folder, "ours")
    token = folder / "token"
    token.write_text(f"{TOKEN}\n")
    guards = ("--tls-cert", str(keys.cert), "--tls-key", str(keys.key), "--token-file", str(token))
    with serve_process(bench.cloud_bundle(), *guards, log_path=folder / "log") as serving:
        yield (
            str(bench.chat_bundle(2)),
            f"localhost:{serving.port}",
            "--tls-ca",
            str(keys.ca),
            "--token-file",
            str(token),
        )


def test_the_plain_client_shows_its_token(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert example("python_api").main(arguments) == 0
    assert "first token after" in capsys.readouterr().err


def test_the_asyncio_client_shows_its_token(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("async_api")
    assert module.main(arguments) == 0
    assert all(question in capsys.readouterr().out for question in module.QUESTIONS[:1])


@pytest.mark.parametrize("name", ["python_api", "async_api"])
def test_another_token_is_refused(name: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    other = tmp_path / "token"
    other.write_text("another-token")
    with pytest.raises(EdgeError, match="token"):
        example(name).main([*arguments[:-1], str(other)])
