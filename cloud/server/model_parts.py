"""The parts of a server that belong to one model: engine, model thread, KV memory, draft head."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from cloud.drafting.forecast_drafter import ForecastDrafter
from cloud.drafting.head_drafter import CloudHeadDrafter
from cloud.drafting.head_loading import load_head
from cloud.engine.engines import scheduler_for
from cloud.engine.frame_decoding import FrameDecoding, default_decode_threads
from cloud.engine.launches import ForwardEngine, LaunchingEngine
from cloud.engine.loop import EngineLoop
from cloud.engine.measured_engine import MeasuredEngine
from cloud.engine.step_turns import StepTurns, TurnTakingEngine
from cloud.errors import StartError
from cloud.kv.pool import KvPool
from cloud.kv.prefix_cache import PrefixCache
from cloud.parallel.parallel_engine import ParallelEngine
from cloud.server.bundles import ModelBundles
from cloud.server.config import ServerConfig
from cloud.server.loading import ServedEngine
from cloud.server.metrics import ModelMetrics
from cloud.server.serving_log import ServingLog
from cloud.sessions.grammars import TOKENIZER_NAME, Grammars
from cloud.sessions.model_sessions import ModelSessions
from cloud.sessions.served_model import ServedModel, named_ladders
from cloud.squeezed.fixed_context import Squeezing
from codec.slow_path import warn_without_kernel
from optimizer.artifacts.bundle import DRAFT_HEAD_FOLDER
from optimizer.measured.log import MeasurementLog
from optimizer.measured.this_machine import this_machine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model whose weights are loaded. weights_bytes: of them, as they were read."""

    bundles: ModelBundles
    engine: ServedEngine
    weights_bytes: int = 0

    @property
    def token_bytes(self) -> int:
        """Bytes of KV cache for one block's tokens, in all layers that are held."""
        return self.engine.kv_shape.num_bytes(split=self.engine.first_layer, max_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParts:
    """See the module's docstring."""

    loaded: LoadedModel
    sessions: ModelSessions
    engine_loop: EngineLoop
    metrics: ModelMetrics
    serving_log: ServingLog | None = None

    @property
    def name(self) -> str:
        """Of the model on this server."""
        return self.sessions.name


def model_parts(
    config: ServerConfig,
    loaded: LoadedModel,
    *,
    kv_bytes: int,
    metrics: ModelMetrics,
    turns: StepTurns | None,
) -> ModelParts:
    """The parts of one model; nothing runs yet. turns: shared with other models' engines.

    Raises StartError for a KV cache or a draft head that cannot be had, and TablesError.
    """
    engine = loaded.engine
    prefixes = PrefixCache()
    if isinstance(engine, ParallelEngine):
        pool = engine.make_pool(kv_bytes, prefixes.drop_oldest)
    else:
        pool = KvPool(
            engine.kv_shape,
            limit_bytes=kv_bytes,
            device=engine.model.device,
            reclaim=prefixes.drop_oldest,
        )
    head = _head(config, loaded, pool) if config.drafts else None
    own = _forecasts(engine, turns) if config.drafts and head is None else None
    sessions = ModelSessions(
        _served(loaded),
        pool,
        prefixes=prefixes,
        grammars=_grammars(loaded),
        head=head,
        forecasts=own,
        squeezing=_squeezing(config, loaded),
        name=loaded.bundles.name,
    )
    log = _serving_log(config, loaded, sessions.served, metrics)
    loop = EngineLoop(
        _stepping(engine, turns, log),
        config.scheduler or scheduler_for(engine.model.device),
        observer=log or metrics,
        decoding=_decoding(config, on_gpu=engine.model.device.type != "cpu"),
        drafter=head or own,
    )
    return ModelParts(
        loaded=loaded, sessions=sessions, engine_loop=loop, metrics=metrics, serving_log=log
    )


def _stepping(
    engine: ServedEngine, turns: StepTurns | None, log: ServingLog | None
) -> ForwardEngine | LaunchingEngine:
    """What runs the steps: one model is measured at most, and several on a CPU take turns."""
    if log is not None:
        return MeasuredEngine(engine, log.batch_ran)
    if turns is not None and engine.model.device.type == "cpu":
        return TurnTakingEngine(engine, turns)
    return engine


def _serving_log(
    config: ServerConfig, loaded: LoadedModel, served: ServedModel, metrics: ModelMetrics
) -> ServingLog | None:
    """Raises MeasurementError for a file that cannot be written."""
    if config.measure is None:
        return None
    plan = loaded.bundles.bundles[0].plan
    on_cpu = loaded.engine.model.device.type == "cpu"
    return ServingLog(
        MeasurementLog(config.measure),
        plan=plan,
        machine=this_machine(
            "torch-cpu" if on_cpu else "torch-cuda", num_threads=torch.get_num_threads()
        ),
        ladder=served.ladder_at(plan.partition.split),
        beside=metrics,
    )


def _served(loaded: LoadedModel) -> ServedModel:
    engine, bundles = loaded.engine, loaded.bundles.bundles
    ladders = named_ladders(bundles)
    for bundle in bundles:
        own = ladders.get(bundle.plan.partition.split, {})
        ladder = next((one for one in own.values() if bundle.plan.level in one.names), None)
        if ladder is not None:
            warn_without_kernel(ladder, bundle.plan.level, decodes=True)
    plans = [bundle.plan for bundle in bundles]
    return ServedModel(
        plans[0],
        layers=range(engine.first_layer, engine.num_layers),
        hidden_size=engine.hidden_size,
        max_tokens=min(max(plan.max_tokens for plan in plans), engine.max_positions),
        ladders=ladders,
        max_positions=engine.max_positions,
        embedding=None if engine.model.embedding is None else engine.model.embedding.rows,
        others=plans[1:],
        leaving_positions=_leaving_positions(loaded),
    )


def _leaving_positions(loaded: LoadedModel) -> int:
    """How far positions reach while tokens leave a cache; 0 where this engine moves no rows.

    A row's window counts places, so a model with windows would see other tokens than it should.
    """
    engine = loaded.engine
    windowed = loaded.bundles.loaded.plan.model.geometry.sliding_window is not None
    if isinstance(engine, ParallelEngine) or engine.model.device.type != "cpu" or windowed:
        return 0
    return engine.max_positions


def _head(config: ServerConfig, loaded: LoadedModel, pool: KvPool) -> CloudHeadDrafter | None:
    """The draft head that was asked for, or the bundle's own where it can run here."""
    folder, engine = config.draft_head, loaded.engine
    own = loaded.bundles.first_with(f"{DRAFT_HEAD_FOLDER}/config.json")
    is_plain = not isinstance(engine, ParallelEngine) and engine.model.device.type == "cpu"
    if folder is None and own is not None and not is_plain:
        logger.warning("the bundle's draft head is not used: heads run on a CPU server alone")
    if isinstance(engine, ParallelEngine):
        return None  # with several ranks the option was refused
    if folder is None:
        if not is_plain or own is None:
            return None
        folder = own.path(f"{DRAFT_HEAD_FOLDER}/config.json").parent
    return load_head(folder, engine, kv_bytes=pool.limit_bytes)


def _forecasts(engine: ServedEngine, turns: StepTurns | None) -> ForecastDrafter | None:
    """Who guesses on forecast rows. None on a GPU and with several models.

    A GPU's steps run while the host goes on, and a model thread does not see the frames that wait
    for another model. So a pass could be in the way of a step.
    """
    if isinstance(engine, ParallelEngine) or engine.model.device.type != "cpu" or turns is not None:
        return None
    return ForecastDrafter(engine)


def _squeezing(config: ServerConfig, loaded: LoadedModel) -> Squeezing | None:
    """Raises StartError for a share that there is not."""
    ratio, engine = config.squeeze_prefixes, loaded.engine
    if ratio is None:
        return None
    if not 0 < ratio <= 1:
        raise StartError(f"--squeeze-prefixes {ratio:g}: a share lies above 0, up to 1")
    scales = {} if isinstance(engine, ParallelEngine) else engine.squeezable_layers
    num_layers = engine.num_layers - engine.first_layer
    if len(scales) < num_layers:
        logger.warning(
            "--squeeze-prefixes: %d of %d layers read all keys; the option needs one CPU process, "
            "and layers of the Llama shape without a window, a soft cap or sinks",
            num_layers - len(scales),
            num_layers,
        )
    return Squeezing(ratio, scales) if scales else None


def _decoding(config: ServerConfig, *, on_gpu: bool) -> FrameDecoding:
    num_threads, short_frames = config.decode_threads, config.decode_short_frames
    return FrameDecoding(
        default_decode_threads() if num_threads is None else num_threads,
        short_frames=on_gpu if short_frames is None else short_frames,
    )


def _grammars(loaded: LoadedModel) -> Grammars:
    eos = loaded.engine.model.config.eos_token_id
    first = next(iter(eos), None) if isinstance(eos, (list, tuple)) else eos
    bundle = loaded.bundles.first_with(TOKENIZER_NAME)
    return Grammars(
        None if bundle is None else bundle.path(TOKENIZER_NAME),
        vocab_size=loaded.bundles.loaded.plan.model.geometry.vocab_size,
        eos_token_id=first if isinstance(first, int) else None,
    )
