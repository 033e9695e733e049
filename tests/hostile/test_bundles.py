"""Hostile bundles against the real commands: one clear line, a quick end, nothing internal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from optimizer.artifacts.bundle import write_manifest
from tests import warm_python
from tests.conftest import ModelBench
from tests.optimizer.artifacts.onnx_bytes import model_with_external
from tests.warm_python import SPLITPOINT

TIMEOUT_S = 60.0  # for a start under load; a hang would take for ever
RUN = ("run", "BUNDLE", "--max-new-tokens", "3", "--prompt", "hi")
CHAT = ("run", "BUNDLE", "--max-new-tokens", "3", "--chat", "hi")
SERVE = ("serve", "BUNDLE", "--listen", "127.0.0.1:0")


@pytest.fixture
def edge(bench: ModelBench, tmp_path: Path) -> Path:
    """A bundle that needs no server."""
    return copied(bench.edge_bundle(bench.num_layers), tmp_path)


@pytest.fixture
def cloud(bench: ModelBench, tmp_path: Path) -> Path:
    """A bundle for a server."""
    return copied(bench.cloud_bundle(), tmp_path)


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "bundle"))


def command(arguments: tuple[str, ...], bundle: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    words = [str(bundle) if word == "BUNDLE" else word for word in arguments]
    environment = {**os.environ, "COLUMNS": "1000"}
    return warm_python.run(SPLITPOINT, words, env=environment, timeout=TIMEOUT_S)


def refused(arguments: tuple[str, ...], bundle: Path) -> str:
    """The message of a command that must end at once, with one line."""
    done = command(arguments, bundle)
    assert done.returncode not in (0, -9), done.stdout
    assert "internal" not in done.stderr.lower(), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    # A slow machine says every ten seconds that it still works.
    lines = [line for line in lines if not line.endswith(" s so far")]
    assert len(lines) == 1, done.stderr
    assert len(lines[0]) < 1000
    return lines[0]


def empty_name(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][""] = {"num_bytes": 0, "sha256": "0" * 64}
    (root / "manifest.json").write_text(json.dumps(manifest))


def deep_settings(root: Path) -> None:
    (root / "edge" / "edge.json").write_text('{"stop_token_ids": ' + "[" * 200_000)
    write_manifest(root)


def unlisted_tables(root: Path) -> None:
    (root / "codec").mkdir()
    (root / "codec" / "split-2.tables").write_bytes(b"SPCODEC2")


def outside_weights(root: Path) -> None:
    (root / "edge" / "front.onnx").write_bytes(model_with_external("/etc/passwd"))
    write_manifest(root)


def alias_bomb(root: Path) -> None:
    lines = ["a0: &a0 [1, 1]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    plan = root / "plan.yaml"
    write_manifest(root)
    plan.write_text("\n".join(lines))
    rehash(root, "plan.yaml")


def huge_number(root: Path) -> None:
    plan = root / "plan.yaml"
    text = plan.read_text().replace("max_tokens: 200", "max_tokens: 1" + "0" * 400)
    plan.write_text(text)
    rehash(root, "plan.yaml")


def rehash(root: Path, name: str) -> None:
    """Put the file's true hash into the manifest, as whoever is hostile would."""
    data = (root / name).read_bytes()
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][name] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (root / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (empty_name, "no name of a file"),
        (deep_settings, "edge.json"),
        (unlisted_tables, "codec/split-2.tables' is not listed"),
        (outside_weights, "/etc/passwd"),
        (alias_bomb, "plan.yaml"),
        (huge_number, "plan.yaml"),
    ],
)
def test_the_device_refuses_it_with_one_line(
    edge: Path, harm: Callable[[Path], None], reason: str
) -> None:
    harm(edge)
    assert reason in refused(RUN, edge)


def test_weights_beside_the_listed_ones_stop_the_server(cloud: Path) -> None:
    listed = next((cloud / "cloud").glob("*.safetensors"))
    tensors = {name: tensor * 0 for name, tensor in load_file(listed).items()}
    save_file(tensors, cloud / "cloud" / "zzz.safetensors")
    assert "cloud/zzz.safetensors' is not listed" in refused(SERVE, cloud)


def test_a_config_of_a_thousand_million_layers_stops_the_server(cloud: Path) -> None:
    path = cloud / "cloud" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9}))
    rehash(cloud, "cloud/config.json")
    assert "config.json" in refused(SERVE, cloud)


def test_a_template_without_end_refuses_chats_and_plain_prompts_go_on(edge: Path) -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (edge / "edge" / "chat_template.jinja").write_text(loop)
    write_manifest(edge)
    assert "chat_template.jinja" in refused(CHAT, edge)
    done = command(RUN, edge)
    assert done.returncode == 0, done.stderr
