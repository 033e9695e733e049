"""How to serve bundles: the settings of a server, and two of them read from text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cloud.engine.weight_types import KV_TYPES, WEIGHT_TYPES
from cloud.errors import StartError
from cloud.server.access import Access
from cloud.server.byte_budget import DEFAULT_TOTAL_BYTES
from cloud.server.pulls import DEFAULT_PULL_BYTES_PER_S
from hwprofiles.machine_limits import usable_cpus
from optimizer.policy.batching import Scheduler
from protos.addresses import is_loopback
from protos.limits import MAX_BUNDLES


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How to serve bundles. Sizes in bytes, times in seconds; None: chosen from the machine.

    more_bundles: served beside `bundle`, behind the same address. The other settings hold for all
    of them; limits and memory are of the whole server (kv_memory_bytes: see `kv_shares`).
    drain_s: how long running sessions may go on after SIGTERM; then they are handed back.
    idle_ttl_s: how long a client may be silent before its session is evicted. max_resume_s: how
    long the session of a broken stream is kept at most. max_waiting: sessions in the queue for a
    place. max_wait_s: how long each of them may wait. frame_memory_bytes: most bytes of frames
    that have come and not run yet. decode_threads: decode frames beside the model's steps; 0: the
    model thread does. decode_short_frames: these threads decode the rows of single steps too, not
    only chunks of prompts (None: where a GPU runs the steps). max_stall_s: how long a client may
    leave an answer unread, and a frame may wait for memory. max_step_s: how long one step of the
    model may take before the server counts as failed. tensor_parallel: over how many devices of
    this machine each layer is divided. verify: hash all weights that lie outside the bundle.
    weights: what linear layers hold (`cloud.engine.weight_types`; None: what the bundle has), on
    one GPU alone. kv_type: what keys and values are kept in, likewise. draft_head: folder of a
    head that guesses beyond answers (None: the bundle's own). drafts: whether anything here does,
    a head or the layers themselves. squeeze_prefixes: share of the
    keys of a long prompt that rows behind it read (`cloud.squeezed`; None: all of them). scheduler:
    the limits of a batch (None: those of the device).
    allow_pull: whether devices may fetch their side of the bundle (None: where it is known who
    asks, see `offers_files`). pull_bytes_per_s: of all pulls together
    (None: no limit); the default leaves most of a 1 Gbit/s link, and of a core, to sessions.
    metrics_port: where GET /metrics is answered (None: nowhere). status_port: where the status page
    is (None: nowhere). measure: the log that gets what steps took (None: none is kept). replica:
    what it is called among several servers behind one address (empty: it stands alone); the proxy
    in front of it then says for whom it speaks. behind_proxy: it does so without such a name too.
    """

    bundle: Path
    host: str = "127.0.0.1"
    port: int = 50051
    max_sessions: int = 64
    kv_memory_bytes: int | None = None
    device: str = "auto"
    tensor_parallel: int = 1
    threads: int | None = None
    decode_threads: int | None = None
    decode_short_frames: bool | None = None
    access: Access = field(default_factory=Access)
    scheduler: Scheduler | None = None
    idle_ttl_s: float = 300.0
    max_resume_s: float = 60.0
    max_waiting: int = 16
    max_wait_s: float = 2.0
    drain_s: float = 30.0
    frame_memory_bytes: int = DEFAULT_TOTAL_BYTES
    max_stall_s: float = 30.0
    max_step_s: float = 300.0
    verify: bool = False
    weights: str | None = None
    kv_type: str | None = None
    draft_head: Path | None = None
    drafts: bool = True
    squeeze_prefixes: float | None = None
    allow_pull: bool | None = None
    pull_bytes_per_s: float | None = DEFAULT_PULL_BYTES_PER_S
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    status_host: str = "127.0.0.1"
    status_port: int | None = None
    measure: Path | None = None
    replica: str = ""
    behind_proxy: bool = False
    more_bundles: tuple[Path, ...] = ()

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All of them, `bundle` first."""
        return (self.bundle, *self.more_bundles)

    def check(self) -> None:
        """StartError for settings that do not go together."""
        if self.draft_head is not None and not self.drafts:
            raise StartError(
                f"--draft-head {self.draft_head}: does not go with --no-drafts; leave one out"
            )
        self._check_several()

    def _check_several(self) -> None:
        if not self.more_bundles:
            return
        if len(self.bundles) > MAX_BUNDLES:
            raise StartError(f"{len(self.bundles)} bundles: a server takes {MAX_BUNDLES}")
        seen: dict[Path, Path] = {}
        for folder in self.bundles:
            if folder.resolve() in seen:
                raise StartError(f"--bundle {folder}: is given twice; give each bundle once")
            seen[folder.resolve()] = folder
        if self.draft_head is not None:
            raise StartError(
                f"--draft-head {self.draft_head}: does not go with --bundle; a head belongs to one "
                "bundle, so build it into that one"
            )
        if self.measure is not None:
            raise StartError(
                f"--measure {self.measure}: does not go with --bundle; measure one model at a time"
            )
        if self.tensor_parallel > 1:
            raise StartError(
                f"--tensor-parallel {self.tensor_parallel}: does not go with --bundle; serve each "
                "bundle at its own address"
            )

    @property
    def offers_files(self) -> bool:
        """Whether devices may pull. The front's weights are a part of the model.

        So by default only those get them who could use the model: with a token, with a client
        certificate, or on this machine. `--insecure` beyond loopback needs `--allow-pull`.
        """
        if self.allow_pull is not None:
            return self.allow_pull
        access = self.access
        return is_loopback(self.host) or access.has_tokens or access.client_ca is not None


def choose_device(wanted: str) -> str:
    """The torch device for `auto`, `cpu` or `cuda`; `auto` takes CUDA where torch has it.

    Raises StartError for a device that is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StartError("--device cuda: torch finds no CUDA device here")
    if wanted not in ("cpu", "cuda"):
        raise StartError(f"--device {wanted}: choose auto, cpu or cuda")
    return wanted


def choose_devices(wanted: str, count: int) -> list[str]:
    """`choose_device`'s for each of `count` ranks. One rank takes torch's current CUDA device.

    Raises StartError where there are fewer CUDA devices than ranks, or fewer cores.
    """
    device = choose_device(wanted)
    if count == 1:
        return [device]
    if device == "cpu":
        cores = usable_cpus()
        if count > cores:
            raise StartError(f"--tensor-parallel {count}: this process may use {cores} cores")
        return [device] * count
    there = torch.cuda.device_count()
    if count > there:
        raise StartError(f"--tensor-parallel {count}: torch finds {there} CUDA device(s) here")
    return [f"{device}:{rank}" for rank in range(count)]


def choose_weights(wanted: str | None, device: str) -> str | None:
    """What linear layers hold on the device that `choose_device` gave.

    Raises StartError for a name that there is not, and on a CPU.
    """
    return _gpu_type(wanted, device, "--weights", WEIGHT_TYPES)


def choose_kv_type(wanted: str | None, device: str) -> str | None:
    """What keys and values are kept in; otherwise as `choose_weights`."""
    return _gpu_type(wanted, device, "--kv-type", KV_TYPES)


def check_one_rank(config: ServerConfig) -> None:
    """StartError for options that a server over several devices does not take."""
    head = None if config.draft_head is None else str(config.draft_head)
    for option, value in (
        ("--weights", config.weights),
        ("--kv-type", config.kv_type),
        ("--draft-head", head),
        ("--measure", config.measure),
    ):
        if value is not None and config.tensor_parallel > 1:
            raise StartError(
                f"{option} {value}: does not go with --tensor-parallel {config.tensor_parallel}"
            )


def check_measured(config: ServerConfig) -> None:
    """StartError where a log would hold steps that no plan counts on."""
    squeeze = None if config.squeeze_prefixes is None else f"{config.squeeze_prefixes:g}"
    for option, value in (
        ("--weights", config.weights),
        ("--kv-type", config.kv_type),
        ("--squeeze-prefixes", squeeze),
    ):
        if config.measure is not None and value is not None:
            raise StartError(
                f"--measure {config.measure}: does not go with {option} {value}, whose steps no "
                "profile predicts"
            )


def _gpu_type(wanted: str | None, device: str, option: str, known: Sequence[str]) -> str | None:
    if wanted is not None and wanted not in known:
        raise StartError(f"{option} {wanted}: choose one of {', '.join(known)}")
    if wanted is not None and device == "cpu":
        raise StartError(f"{option} {wanted}: works on a GPU only, and this server runs on a CPU")
    return wanted
