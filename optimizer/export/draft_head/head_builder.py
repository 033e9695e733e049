"""From a bundle to a bundle with a draft head: corpus, vocabulary, training, export, facts."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch

from hwprofiles.heap import trim_heap
from optimizer.artifacts.bundle import Bundle, record_files
from optimizer.errors import BuildError
from optimizer.export.disk_faults import naming_the_disk
from optimizer.export.draft_head.corpus import Progress, held_out_step, make_corpus
from optimizer.export.draft_head.head import DraftHead, HeadShape, frequent_tokens, output_embedding
from optimizer.export.draft_head.onnx_export import ADAPTER_BITS, export_head
from optimizer.export.draft_head.shards import FrontRows, Shard, split_shard
from optimizer.export.draft_head.stored_rows import joined
from optimizer.export.draft_head.training import (
    HeldOutScore,
    Positions,
    TrainOptions,
    likeliest_tokens,
    score_guesses,
    train,
)
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.working_folder import working_folder

HELD_OUT_EVERY: Final = 12
_TIMED_GUESSES: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """What to train. Sizes in tokens and channels. head_bits: 4 or 8, of the exported head."""

    num_tokens: int = 65536
    vocabulary: int = 8192
    num_blocks: int = 2
    inner: int = 1024
    head_bits: int = 8
    training: TrainOptions = field(default_factory=TrainOptions)


def build_head(
    source: ModelSource,
    bundle: Bundle,
    *,
    open_front: Callable[[], FrontRows],
    work: Path,
    text: str | None,
    options: HeadOptions,
    progress: Progress,
) -> dict[str, Any]:
    """Train a head for `bundle` and write `draft/` and a new manifest into it.

    open_front: gives the bundle's own front. It is asked at once, so that a broken front is found
    before the long work, and again when the first rows are needed. work: a folder for corpus and
    checkpoint, from which an interrupted run continues. What another front, text or other options
    left there is not used. Returns the contents of `draft/head.json`. Raises BuildError for another
    model than the bundle's, or where the edge holds the whole model.

    Memory: two layers in float32, the embedding and head as stored, and 1.5 GiB are enough for any
    number of tokens (docs/results/builds.md). The parts that need much follow one another.
    """
    plan = bundle.plan
    if source.sha256 != plan.model.sha256:
        raise BuildError(f"the bundle is of model {plan.model.id}, this is {source.id}")
    if plan.edge_is_whole:
        raise BuildError("the edge holds the whole model: there is no round trip to hide")
    open_front()
    shards = _corpus(source, bundle, open_front, work, text, options, progress)
    trim_heap()  # of layers and front
    progress("choosing the vocabulary", 0, 1)
    train_on, held_out = _without_labels(shards)
    embedding = output_embedding(source)
    train_on, held_out = (
        replace(part, best=likeliest_tokens(part.states, embedding))
        for part in (train_on, held_out)
    )
    head = _new_head(train_on, embedding, options)
    del embedding
    trim_heap()
    with naming_the_disk(work):
        score = train(
            head,
            train_on,
            held_out,
            options.training,
            checkpoint=work / f"checkpoint-{run_digest(bundle, text, options)}.pt",
            progress=progress,
        )
    trim_heap()  # of gradients and the optimizer
    progress("writing the head", 0, 1)
    return _write(head.cpu(), score, bundle, held_out, options, num_trained=len(train_on))


def _corpus(
    source: ModelSource,
    bundle: Bundle,
    open_front: Callable[[], FrontRows],
    work: Path,
    text: str | None,
    options: HeadOptions,
    progress: Progress,
) -> list[Shard]:
    """See `make_corpus`. Model and front are in memory only while this runs."""
    tokenizer = source.load_tokenizer()
    text_ids = None if text is None else np.array(tokenizer.encode(text), dtype=np.int64)
    opened = functools.cache(open_front)
    with naming_the_disk(work), working_folder(work / "rows") as scratch:
        model = LayeredModel(source, folder=scratch, device=options.training.device)
        with model.in_bfloat16():  # exact enough for the corpus
            return make_corpus(
                work / f"corpus-{_digest(_front_files(bundle))}",
                model=model,
                tokenizer=tokenizer,
                front=lambda token_ids: opened()(token_ids),
                num_tokens=options.num_tokens,
                text_ids=text_ids,
                progress=progress,
            )


def _new_head(train_on: Positions, embedding: torch.Tensor, options: HeadOptions) -> DraftHead:
    """A head before training, of the tokens that the model says most often."""
    tokens = torch.from_numpy(
        frequent_tokens(train_on.best, vocab_size=len(embedding), count=options.vocabulary)
    )
    shape = HeadShape(
        hidden_size=embedding.shape[1],
        vocab_size=len(tokens),
        num_blocks=options.num_blocks,
        inner=options.inner,
    )
    torch.manual_seed(options.training.seed)
    return DraftHead(shape, tokens=tokens, embedding=embedding[tokens].float())


def _front_files(bundle: Bundle) -> list[str]:
    """Hashes of the front's files. The corpus holds rows of this front, so it depends on them."""
    return sorted(file.sha256 for name, file in bundle.files.items() if name.startswith("edge/"))


def run_digest(bundle: Bundle, text: str | None, options: HeadOptions) -> str:
    """A digest of everything that a checkpoint depends on.

    Epochs and device are not in it: a run of more epochs continues one of fewer, on any device.
    """
    values = asdict(options)
    del values["head_bits"]  # of the export alone
    for name in ("epochs", "device"):
        del values["training"][name]
    return _digest([_front_files(bundle), text, values])


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _write(
    head: DraftHead,
    score: HeldOutScore,
    bundle: Bundle,
    held_out: Positions,
    options: HeadOptions,
    *,
    num_trained: int,
) -> dict[str, Any]:
    """Put the files of `draft/` into the bundle, whole or not at all."""
    with naming_the_disk(bundle.root), working_folder(bundle.root) as working:
        path = working / "head.onnx"
        export_head(head, path, head_bits=options.head_bits)
        facts = _facts(path, head, score, bundle, held_out, options, num_trained=num_trained)
        (working / "head.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        folder = bundle.root / "draft"
        folder.mkdir(exist_ok=True)
        for name in ("head.onnx", "head.json"):
            os.replace(working / name, folder / name)
        record_files(bundle.root, ("draft/head.onnx", "draft/head.json"))
    return facts


def _facts(
    path: Path,
    head: DraftHead,
    score: HeldOutScore,
    bundle: Bundle,
    held_out: Positions,
    options: HeadOptions,
    *,
    num_trained: int,
) -> dict[str, Any]:
    """The contents of `head.json`. Its figures are measured on the exported head at `path`."""
    session = _session(path)
    exported = score_guesses(
        lambda rows: tuple(out[:, 0] for out in session.run(None, {"hidden": rows})),
        held_out,
    )
    return {
        "split": bundle.plan.partition.split,
        "vocabulary": head.shape.vocab_size,
        "bits": options.head_bits,
        "adapter_bits": ADAPTER_BITS,
        "num_parameters": head.shape.num_parameters,
        "num_bytes": path.stat().st_size,
        "guess_s": measure_guess_s(session, head.shape.hidden_size),
        "trained_positions": num_trained,
        "held_out_positions": exported.num_positions,
        "top1": exported.top1,
        "top1_before_quantization": score.top1,
        "top1_by_epoch": score.by_epoch,
        "sure": exported.sure,
        "shape": asdict(head.shape),
    }


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_guess_s(session: ort.InferenceSession, hidden_size: int) -> float:
    """Median seconds of one guess on this machine, on one thread."""
    row = np.random.default_rng(0).normal(size=(1, hidden_size)).astype(np.float32)
    spans = []
    for _ in range(_TIMED_GUESSES):
        started = time.perf_counter()
        session.run(None, {"hidden": row})
        spans.append(time.perf_counter() - started)
    return float(np.median(spans))


def _without_labels(shards: list[Shard]) -> tuple[Positions, Positions]:
    """Training and held-out positions, with `best` empty as yet.

    Whole runs of text are held out, not single tokens.
    """
    parts: dict[bool, list[Shard]] = {False: [], True: []}
    step = held_out_step(shards, HELD_OUT_EVERY)
    for shard in shards:
        for piece, is_held_out in split_shard(shard, step):
            parts[is_held_out].append(piece)
    training, held_out = (
        Positions(
            rows=joined([piece.rows for piece in parts[key]]),
            states=joined([piece.states for piece in parts[key]]),
            best=np.zeros(0, dtype=np.int64),
        )
        for key in (False, True)
    )
    return training, held_out
