"""Models and bundles that several rooms' tests use, each built once a session."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

# The GPU's kernels run in Triton's interpreter where there is no GPU. Triton looks at the variable
# when it is loaded, which some of the imports below do.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Processes that share the machine's CPUs (`pytest -n 2`) share them evenly: with a thread for each
# CPU in each of them, and in the servers that they start, all wait for each other.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from optimizer.artifacts.bundle import write_manifest
from optimizer.artifacts.plan import ModelRef, Partition, Plan
from optimizer.artifacts.prefill import PrefillPlace
from optimizer.export.bundle_builder import build_bundle
from optimizer.export.sources.model_source import ModelSource, open_source
from tests.end_to_end.servers import RunningServer, running_server
from tests.local_data import smollm2_model, smollm2_source
from tests.tiny_models import make_tiny_model

# The same examples every time, however long one takes: a test that fails fails for everybody.
# `--hypothesis-profile=default` searches anew.
settings.register_profile("splitpoint", derandomize=True, deadline=None)
settings.load_profile("splitpoint")

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class ModelBench:
    """One model on disk, and every bundle of it that a test has asked for."""

    def __init__(
        self, source: ModelSource, built_in: Path, load_whole: Callable[[], Any] | None = None
    ) -> None:
        """built_in: where bundles are built. Processes of one run share the folder, so that each
        bundle is built once."""
        self.source = source
        self._load_whole = load_whole or (lambda: source.load_model().eval())
        self._built_in = built_in
        self._bundles: dict[tuple[Any, ...], Path] = {}
        self._whole: Any = None

    @property
    def num_layers(self) -> int:
        return self.source.geometry.num_layers

    @property
    def whole(self) -> Any:
        """The unsplit transformers model in float32: the reference."""
        if self._whole is None:
            self._whole = self._load_whole()
        return self._whole

    def plan(
        self,
        split: int,
        *,
        front_bits: int = 32,
        back_bits: int = 32,
        kv_bits: int = 32,
        max_tokens: int = 200,
        prefill_chunk: int = 16,
        back_start: int = 0,
        front_splits: tuple[int, ...] = (),
        prefill: PrefillPlace = "edge",
        max_positions: int = 0,
    ) -> Plan:
        source = self.source
        return Plan(
            model=ModelRef(id=source.id, sha256=source.sha256, geometry=source.geometry),
            partition=Partition(split=split, front_bits=front_bits, back_bits=back_bits),
            back_start=back_start,
            kv_bits=kv_bits,
            level="lossless",
            max_tokens=max_tokens,
            prefill_chunk=prefill_chunk,
            front_splits=front_splits,
            prefill=prefill,
            max_positions=max_positions,
        )

    def edge_bundle(self, split: int, **changes: Any) -> Path:
        return self._built(self.plan(split, **changes), "edge")

    def cloud_bundle(self, split: int = 0, **changes: Any) -> Path:
        """A bundle whose cloud holds every layer, so that it serves every split."""
        return self._built(self.plan(split, **changes), "cloud")

    def chat_bundle(self, split: int) -> Path:
        """The edge bundle of `split` for a model with a chat template."""
        plain = self.edge_bundle(split)
        copy = plain.with_name(f"{plain.name}-chat")
        with _locked(copy):
            if not copy.exists():
                shutil.copytree(plain, copy)
                (copy / "edge" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
                write_manifest(copy)
        return copy

    def _built(self, plan: Plan, side: Any) -> Path:
        key = (plan, side)
        if key not in self._bundles:
            digest = hashlib.sha256(f"{plan!r} {side}".encode()).hexdigest()
            out = self._built_in / f"bundle-{digest[:16]}"
            with _locked(out):
                if not out.exists():
                    build_bundle(self.source, plan, out, progress=lambda stage: None, sides=(side,))
            self._bundles[key] = out
        return self._bundles[key]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While the block runs, no other process is in such a block for this path."""
    with Path(f"{path}.lock").open("a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where bundles are built: one folder for all processes of a run (`pytest -n 2`)."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "bundles"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, built_in: Path) -> Any:
    """`tiny(architecture)` gives the ModelBench of a tiny seeded random model."""
    benches: dict[str, ModelBench] = {}

    def bench(name: str) -> ModelBench:
        if name not in benches:
            root = tmp_path_factory.mktemp(f"tiny-{name}")
            make_tiny_model(name, root / "model")
            benches[name] = ModelBench(open_source(root / "model"), built_in)
        return benches[name]

    return bench


@pytest.fixture(scope="session")
def bench(tiny: Any) -> ModelBench:
    """The tiny model that most tests of a whole client take."""
    llama: ModelBench = tiny("llama")
    return llama


@pytest.fixture(scope="module")
def server(bench: ModelBench) -> Iterator[RunningServer]:
    """A server of it, which serves every split."""
    with running_server(bench.cloud_bundle()) as running:
        yield running


@pytest.fixture(scope="session")
def real(built_in: Path) -> ModelBench:
    """SmolLM2-135M-Instruct."""
    return ModelBench(smollm2_source(), built_in, smollm2_model)
