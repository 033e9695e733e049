"""A head reads and guesses what its formulas say, whoever shares the step and however rows came."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cloud.drafting.eagle_head import EagleHead
from cloud.drafting.head_drafter import CHOICES, CloudHeadDrafter
from cloud.drafting.head_session import HeadSession
from cloud.drafting.head_spec import HeadWeights, read_head
from cloud.drafting.session_drafts import RanRows
from cloud.kv.pool import KvPool, KvShape
from protos.messages import Drafts
from tests.cloud.drafting.heads import HEAD_DIM, HEADS, KV_HEADS, THETA, write_head

WIDTH, VOCAB, LAYERS = 64, 320, 4
FORMS = pytest.mark.parametrize("form", ["eagle", "eagle3"])


class Bench:
    """A head, what it is made of, and a drafter over it."""

    def __init__(self, folder: Path, form: str, *, tokens_in_pool: int = 4096) -> None:
        weights = read_head(
            write_head(folder, form), hidden_size=WIDTH, vocab_size=VOCAB, num_layers=LAYERS
        )
        assert isinstance(weights, HeadWeights)
        self.weights = weights
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(VOCAB, WIDTH, generator=generator)
        self.own_head = torch.randn(VOCAB, WIDTH, generator=generator)
        model = EagleHead(
            self.weights,
            embed=lambda token_ids: self.table[list(token_ids)],
            logits=lambda rows: rows @ self.own_head.T,
            quantize=False,
        )
        shape = KvShape(num_layers=1, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        limit = shape.num_bytes(split=0, max_tokens=tokens_in_pool)
        self.pool = KvPool(shape, limit_bytes=limit)
        self.drafter = CloudHeadDrafter(model, self.pool, norm=None)
        self.state_width = WIDTH * len(self.weights.spec.layers)

    def session(self, most: int = 5) -> HeadSession:
        session = self.drafter.open(split=2, max_tokens=200, most=most)
        assert session is not None
        return session

    def states(self, count: int, seed: int) -> Tensor:
        return torch.randn(count, self.state_width, generator=torch.Generator().manual_seed(seed))


def reference(bench: Bench, states: Tensor, tokens: list[int], count: int) -> list[list[int]]:
    """The head's choices without a cache: every guess runs the whole sequence again."""
    weights: HeadWeights = bench.weights
    spec, tensors = weights.spec, weights.tensors

    def norm(name: str, x: Tensor) -> Tensor:
        weight = tensors[f"{name}.weight"]
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + spec.eps) * weight

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ tensors[f"{name}.weight"].T

    def rotated(x: Tensor) -> Tensor:
        half = HEAD_DIM // 2
        angles = torch.arange(len(x))[:, None] / THETA ** (torch.arange(half) / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        left, right = x[..., :half], x[..., half:]
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)

    table = bench.table if weights.embedding is None else weights.embedding.float()
    known = linear("fc", states) if spec.is_eagle3 else states
    found: list[list[int]] = []
    for _ in range(count):
        embedded = table[tokens]
        if spec.is_eagle3:
            residual = known
            x = torch.cat([norm("input_layernorm", embedded), norm("hidden_norm", known)], -1)
        else:
            residual = x = linear("fc", torch.cat([embedded, known], -1))
        query = rotated(linear("self_attn.q_proj", x).view(-1, HEADS, HEAD_DIM))
        keys = rotated(linear("self_attn.k_proj", x).view(-1, KV_HEADS, HEAD_DIM))
        values = linear("self_attn.v_proj", x).view(-1, KV_HEADS, HEAD_DIM)
        mixed = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            is_causal=True,
            enable_gqa=True,
        )[0].transpose(0, 1)
        hidden = residual + linear("self_attn.o_proj", mixed.reshape(len(x), -1))
        inner = norm("post_attention_layernorm", hidden)
        gated = F.silu(linear("mlp.gate_proj", inner)) * linear("mlp.up_proj", inner)
        out = hidden + linear("mlp.down_proj", gated)
        last = out[-1]
        logits = (
            linear("lm_head", norm("norm", last)) if spec.is_eagle3 else last @ bench.own_head.T
        )
        best = logits.topk(CHOICES).indices
        best = best if weights.token_ids is None else weights.token_ids[best]
        found.append(best.tolist())
        known = torch.cat([known, last[None]])
        tokens = [*tokens, found[-1][0]]
    return found


def ids_of(drafts: Drafts | None) -> list[list[int]]:
    assert drafts is not None
    return [[choice.token_id for choice in choices] for choices in drafts.choices]


def feed(
    session: HeadSession, at: int, tokens: list[int], states: Tensor, last: int | None
) -> None:
    session.begin(at)
    for part in states.split(3):
        session.tap(part)
    session.ran(RanRows(at, tuple(tokens), last))


@FORMS
def test_guesses_are_those_of_the_whole_sequence_in_chunks_steps_and_drafts(
    tmp_path: Path, form: str
) -> None:
    bench = Bench(tmp_path, form)
    session = bench.session()
    tokens = [3, 9, 27, 81, 243, 5, 15, 45, 135, 17]
    states = bench.states(10, seed=1)
    feed(session, 0, tokens[:4], states[:4], None)  # a chunk of the prompt
    assert bench.drafter.draft([session], step_s=1.0) == [None]
    feed(session, 4, tokens[4:7], states[4:7], tokens[7])  # its last chunk, and an answer
    (drafts,) = bench.drafter.draft([session], step_s=1.0)
    assert ids_of(drafts) == reference(bench, states[:7], tokens[1:8], 5)[: len(ids_of(drafts))]
    assert drafts is not None
    assert drafts.first_position == 8
    # A frame with two refused drafts behind the known token: one row of three stays.
    session.begin(7)
    session.tap(torch.cat([states[7:8], bench.states(2, seed=9)]))
    session.ran(RanRows(7, (tokens[7],), tokens[8]))
    (drafts,) = bench.drafter.draft([session], step_s=1.0)
    assert ids_of(drafts) == reference(bench, states[:8], tokens[1:9], 5)[: len(ids_of(drafts))]
    assert len(ids_of(drafts)) >= 3


@FORMS
def test_sessions_of_one_step_do_not_see_each_other(tmp_path: Path, form: str) -> None:
    bench = Bench(tmp_path, form)
    sessions = [bench.session(most=3) for _ in range(3)]
    for seed, session in enumerate(sessions):
        tokens = [seed + 1, 7 * seed + 2, 30 + seed]
        feed(session, 0, tokens, bench.states(3, seed=seed), 11 + seed)
    together = [ids_of(drafts) for drafts in bench.drafter.draft(sessions, step_s=1.0)]
    for seed, found in enumerate(together):
        tokens = [7 * seed + 2, 30 + seed, 11 + seed]
        expected = reference(bench, bench.states(3, seed=seed), tokens, 3)
        assert found == expected[: len(found)]


@FORMS
def test_a_rollback_forgets_what_was_read_behind_it(tmp_path: Path, form: str) -> None:
    """The pair before the place is lost with it; the next ones are read as ever."""
    bench = Bench(tmp_path, form)
    session = bench.session()
    feed(session, 0, [3, 9, 27, 81], bench.states(4, seed=1), 5)
    bench.drafter.draft([session], step_s=1.0)
    feed(session, 2, [28, 82], bench.states(2, seed=2), 6)
    assert bench.drafter.draft([session], step_s=1.0)[0] is not None
    assert session.lease.length == 3  # of four pairs: that of position 1 named another token
    assert session.end == 5


def test_a_session_that_begins_in_anothers_prefix_drafts_from_what_it_ran(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eagle")
    session = bench.session()
    states = bench.states(2, seed=1)
    feed(session, 16, [3, 9], states, 5)
    (drafts,) = bench.drafter.draft([session], step_s=1.0)
    assert ids_of(drafts) == reference(bench, states, [9, 5], 5)[: len(ids_of(drafts))]
    assert drafts is not None
    assert drafts.first_position == 19


def test_a_session_whose_edge_has_the_layers_that_the_head_reads_gets_no_guesses(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, "eagle3")
    assert bench.drafter.open(split=3, max_tokens=10, most=4) is None
    assert bench.drafter.open(split=2, max_tokens=10, most=0) is None


def test_without_room_for_its_keys_a_session_goes_on_without_guesses(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eagle", tokens_in_pool=256)
    first = bench.session()
    assert bench.drafter.open(split=2, max_tokens=200, most=4) is None
    first.close()
    first.close()
    assert bench.pool.used_bytes == 0
    assert not first.is_due
    assert bench.drafter.open(split=2, max_tokens=200, most=4) is not None


def test_confidences_fall_from_the_guess_on_and_stay_a_probability(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eagle3")
    session = bench.session()
    feed(session, 0, [1, 2, 3], bench.states(3, seed=4), 4)
    (drafts,) = bench.drafter.draft([session], step_s=1.0)
    assert drafts is not None
    for choices in drafts.choices:
        shares = [choice.confidence for choice in choices]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1 + 1e-6


def test_numbers_beyond_range_are_no_guess_and_stay_their_sessions_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eagle")
    broken, whole = bench.session(most=3), bench.session(most=3)
    states = bench.states(3, seed=1)
    feed(broken, 0, [1, 2, 3], torch.full_like(states, torch.nan), 4)
    feed(whole, 0, [1, 2, 3], states, 4)
    nothing, drafts = bench.drafter.draft([broken, whole], step_s=1.0)
    assert nothing is None
    assert ids_of(drafts) == reference(bench, states, [2, 3, 4], 3)[: len(ids_of(drafts))]


def test_a_closed_session_keeps_nothing_of_what_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "eagle")
    session = bench.session()
    feed(session, 0, [1, 2, 3], bench.states(3, seed=1), 4)
    session.close()
    feed(session, 3, [4], bench.states(1, seed=2), 5)
    feed(session, 1, [6, 7], bench.states(2, seed=3), 8)
    assert not session.is_due
    assert bench.pool.used_bytes == 0
