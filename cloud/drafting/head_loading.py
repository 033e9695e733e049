"""The draft head of one server, loaded for its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloud.drafting.draft_network import DraftNetwork
from cloud.drafting.eagle_head import EagleHead
from cloud.drafting.head_drafter import CloudHeadDrafter
from cloud.drafting.head_spec import read_head
from cloud.drafting.mtp_head import MtpHead, try_head
from cloud.drafting.mtp_spec import MtpWeights
from cloud.engine.back_engine import BackEngine
from cloud.errors import StartError
from cloud.kv.pool import KvPool, KvShape

# The head's keys and values beside those of the back: a layer more, for as many tokens.
_HEAD_LAYERS: Final = 1


def load_head(folder: Path, engine: BackEngine, *, kv_bytes: int) -> CloudHeadDrafter:
    """The draft head in `folder` for the model of `engine`, which will capture what it reads.

    kv_bytes: of the back's KV cache; the head's gets room for as many tokens. Raises WeightsError
    for a head that does not fit the model, and StartError for a server that cannot run one.
    """
    model = engine.model
    if model.device.type != "cpu":
        raise StartError("--draft-head: a head runs on a CPU server alone as yet")
    config = model.config
    weights = read_head(
        folder,
        hidden_size=engine.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=engine.num_layers,
    )
    embedding = model.embedding
    if weights.embedding is None and embedding is None:
        raise StartError(
            f"{folder}: it holds no embed_tokens.weight, and this bundle no embedding: build it "
            "with --back-from 0"
        )
    embed = None if embedding is None else embedding.tensor_rows
    head: DraftNetwork
    if isinstance(weights, MtpWeights):
        head = MtpHead(weights, embed=embed, logits=engine.head_logits)
        try_head(head, folder, width=engine.hidden_size)
    else:
        head = EagleHead(weights, embed=embed, logits=engine.head_logits)
    num_heads, head_dim = head.kv_heads
    shape = KvShape(num_layers=_HEAD_LAYERS, num_kv_heads=num_heads, head_dim=head_dim)
    blocks = kv_bytes // (engine.kv_shape.block_bytes * max(1, engine.num_layers))
    pool = KvPool(shape, limit_bytes=max(1, blocks) * shape.block_bytes)
    engine.capture(head.layers)
    return CloudHeadDrafter(head, pool, norm=model.norm if head.reads_normed else None)
