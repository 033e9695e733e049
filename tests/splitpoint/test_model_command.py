"""`splitpoint model inspect` answers from headers, for models that work and those that do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from optimizer.export.sources.checkpoint_files import WHOLE_NAME
from splitpoint.cli import main
from tests.optimizer.export.sources import packing
from tests.optimizer.export.sources.checkpoints import as_gguf
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "llama"
    make_tiny_model("llama", path)
    return path


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["model", "inspect", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_folder_tells_all_without_its_values(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def no_values(*args: object, **kwargs: object) -> None:
        raise AssertionError("values were read")

    monkeypatch.setattr("optimizer.export.sources.folder_source.safe_open", no_values)
    monkeypatch.setattr("optimizer.export.sources.folder_source.sha256_of", no_values)
    found = inspected(folder, capsys)
    tensors = load_file(folder / WHOLE_NAME)
    size = {name: 4 * tensor.numel() for name, tensor in tensors.items()}
    layers = sum(count for name, count in size.items() if ".layers." in name)
    assert found["family"] == "llama"
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["num_parameters"] == sum(size.values()) // 4
    assert found["types"] == {"F32": len(tensors)}
    assert found["part_bytes"] == {
        "embedding": 4 * 320 * 64,
        "layers": layers,
        "head": 0,
        "other": 4 * 64,
        "stored": True,
        "total": sum(size.values()),
    }
    assert found["kv_bytes_a_token"] == {"32": 1024, "16": 512, "8": 256}
    assert found["positions"] == "default, base 10000"
    assert found["can_build"] is True
    assert found["next"].startswith(f"splitpoint build --model {folder} --split 1")
    parts = layers / 4 * 2 + 4 * 320 * 64 + 1.5 * 2**30
    assert found["build"]["total_bytes"] == parts


def test_a_config_alone_is_enough_to_plan(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for path in (tmp_path, tmp_path / "config.json"):
        found = inspected(path, capsys)
        assert found["format"] == "config only"
        assert found["can_build"] is False
        assert found["next"].startswith("splitpoint plan --model")
        assert found["part_bytes"]["stored"] is False
        assert found["num_parameters"] == inspected(folder, capsys)["num_parameters"]


def test_a_gguf_file_and_a_packed_folder_say_how_they_are_quantized(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = inspected(as_gguf(folder, tmp_path / "m.gguf"), capsys)
    assert (found["format"], found["family"]) == ("GGUF", "llama")
    assert found["num_parameters"] == inspected(folder, capsys)["num_parameters"]

    def pack(name: str, shape: tuple[int, int]) -> Any:
        matrix = packing.random_grid(shape)
        return packing.gptq(matrix), matrix.weight()

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    packing.packed_copy(folder, tmp_path / "packed", settings, pack)
    found = inspected(tmp_path / "packed", capsys)
    assert found["quantization"] == "GPTQ, 4 bits"
    assert found["can_build"] is True


def test_what_is_not_supported_is_told_with_its_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}})
    )
    tensors = load_file(folder / WHOLE_NAME)
    save_file(tensors, tmp_path / WHOLE_NAME, metadata={"format": "pt"})
    found = inspected(tmp_path, capsys)
    reasons = {part["what"]: part["reason"] for part in found["supports"] if not part["works"]}
    assert "mxfp4" in reasons["weights"]
    assert found["can_build"] is False
    assert main(["model", "inspect", str(tmp_path)]) == 0
    assert "mxfp4" in capsys.readouterr().out


def test_a_state_space_model_is_described_and_not_supported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"]})
    )
    found = inspected(tmp_path, capsys)
    assert found["family"] is None
    assert found["next"] == ""
    assert not found["can_build"]


def test_what_is_no_model_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(tmp_path / "nowhere")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip().count("\n") == 0
    assert "no such model" in captured.err
