"""Load the engine of a server: in this process, or over several ranks (`cloud.parallel`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import torch

from cloud.engine.back_engine import BackEngine
from cloud.engine.back_weights import BackModel, load_back
from cloud.engine.engines import make_engine
from cloud.engine.threads import use_threads
from cloud.parallel.followers import Followers
from cloud.parallel.parallel_engine import ParallelEngine
from cloud.parallel.shares import check_divisible
from cloud.server.config import (
    ServerConfig,
    check_measured,
    check_one_rank,
    choose_devices,
    choose_kv_type,
    choose_weights,
)
from optimizer.artifacts.bundle import Bundle
from optimizer.artifacts.weight_reference import REFERENCE_NAME

# Called with the share of the loading that is done, 0 to 1, and with what comes next.
Progress = Callable[[float, str], None]
ServedEngine: TypeAlias = BackEngine | ParallelEngine

_READ_SHARE: Final = 0.8  # of the loading; the rest packs the layers
_REFERENCE: Final = f"cloud/{REFERENCE_NAME}"
# How long a step waits for a rank that does not answer. Ranks do the same work at the same time.
_MOST_RANK_WAIT_S: Final = 60.0


@contextlib.contextmanager
def loaded_engine(
    config: ServerConfig, bundle: Bundle, progress: Progress
) -> Iterator[tuple[ServedEngine, int]]:
    """The engine and the bytes of its weights. On exit the processes of other ranks end.

    Raises StartError (also WeightsError), BundleError; for a model that cannot be divided and for
    devices that are not there before anything is read.
    """
    check_one_rank(config)
    check_measured(config)
    devices = choose_devices(config.device, config.tensor_parallel)
    weights = choose_weights(config.weights, devices[0])
    kv_type = choose_kv_type(config.kv_type, devices[0])
    threads = use_threads(config.threads)
    if len(devices) == 1:
        progress(0.0, "opening the weights")
        model = _model(config, bundle, devices[0], weights, progress)
        progress(_READ_SHARE, "preparing the layers")
        weights_bytes = model.num_bytes  # before the kernel packs them
        engine = make_engine(model, kv_type=kv_type)
        del model
        yield engine, weights_bytes
        return
    check_divisible(bundle.path("cloud/config.json").parent, len(devices))
    progress(0.0, "starting the other ranks")
    if devices[0] == "cpu":  # the ranks share the cores
        threads = max(1, threads // len(devices))
        torch.set_num_threads(threads)
    timeout_s = min(config.max_step_s, _MOST_RANK_WAIT_S)
    followers = Followers(devices, threads=threads, timeout_s=timeout_s)
    with contextlib.closing(followers):
        divided = ParallelEngine.load(
            followers,
            bundle.path("cloud/config.json").parent,
            first_layer=bundle.plan.back_start,
            weight_files=bundle.paths("cloud", ".safetensors"),
            reference=bundle.path(_REFERENCE) if bundle.has(_REFERENCE) else None,
            verify=config.verify,
            progress=_layers(progress),
        )
        yield divided, divided.weights_bytes


def _model(
    config: ServerConfig, bundle: Bundle, device: str, weights: str | None, progress: Progress
) -> BackModel:
    return load_back(
        bundle.path("cloud/config.json").parent,
        first_layer=bundle.plan.back_start,
        device=device,
        weight_files=bundle.paths("cloud", ".safetensors"),
        reference=bundle.path(_REFERENCE) if bundle.has(_REFERENCE) else None,
        verify=config.verify,
        weights=weights,
        progress=_layers(progress),
    )


def _layers(progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(
        _READ_SHARE * done / total, f"reading layer {done + 1} of {total}"
    )
