"""The messages of the wire as frozen values: what the two sides say to each other.

Field by field they are those of split_inference.proto, which explains each one. `protos.wire`
turns them into bytes and back. Nothing here knows protobuf.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from decoding.params import SamplingParams
from decoding.scores import TopToken
from protos.limits import DEFAULT_FRAMES_IN_FLIGHT


def no_ids() -> array[int]:
    """An empty array of token ids."""
    return array("I")


def no_logprobs() -> array[float]:
    """An empty array of log-probabilities."""
    return array("f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Announces a session. The cloud reserves KV for `max_tokens` tokens, or refuses.

    resume_s: how long the cloud should keep the session when its stream breaks, for another
    stream that opens the same `session_id`, which is the session's secret. prefix_hashes: the
    chain (`protos.prefix`) after the first frame, the second, ... that the edge knows already.
    shareable_tokens: how many prompt tokens later sessions may share. prefix_salt: the device's
    secret that its chains begin with; empty: it shares with all devices of its tenant. token_rows:
    how many first tokens may come in token frames. continues: the id of an older session that ends
    with this Open; empty: none. kv_tokens: how many first tokens of it this session begins with;
    their keys and values below the older split come in frames with `kv`. prompt_tokens: how many of
    the first tokens are the prompt; where `sampling` asks for what version 1 does not know.
    end_token_ids: tokens that end an answer, where it has a grammar. draft_ids: how many tokens the
    cloud may guess beyond each answer. max_positions: how far positions reach while tokens leave
    the cache (`Frame.kept`); 0: none leaves. entropies: report how surprising each token was.
    recall: ask whether frames may refer to earlier rows.
    """

    session_id: str
    model_sha256: str
    split: int
    hidden_size: int
    codec_tables_sha256: str
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    resume_s: float = 0.0
    prefix_hashes: tuple[bytes, ...] = ()
    shareable_tokens: int = 0
    prefix_salt: bytes = field(default=b"", repr=False)
    token_rows: int = 0
    continues: str = field(default="", repr=False)
    kv_tokens: int = 0
    prompt_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    draft_ids: int = 0
    max_positions: int = 0
    entropies: bool = False
    recall: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Hidden states of consecutive positions entering layer `split`.

    token_ids: [T] the input tokens of the rows; the last `num_drafts` of them are guesses.
    hidden: a codec frame of float32 [T, D]; empty: a token frame, whose rows the cloud computes
    from the ids. first_position: where it is below the number of tokens that the cloud holds, the
    cloud first rolls its cache back to there. ahead: the edge sent the frame before it had the
    answer to the frame before. The first row is then a guess of the last token of that answer; if
    the guess is wrong, the cloud runs nothing. kv: a frame of `codec.kv`, beside token ids alone:
    keys and values of their positions, in a session that continues another one. kept: before
    anything runs, the tokens of all other places leave the cache (`protos.kept_places`); empty:
    none does. Where tokens have left, `first_position` is the first row's place in the cache.
    """

    sequence: int
    first_position: int
    token_ids: tuple[int, ...]
    hidden: bytes
    num_drafts: int = 0
    want_token: bool = True
    ahead: bool = False
    kv: bytes = b""
    kept: bytes = b""

    @property
    def is_tokens(self) -> bool:
        """Whether it is a token frame: ids without hidden states."""
        return not self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The edge has what it wants; the cloud frees the session's KV."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The session is admitted; a frame may hold up to `max_frame_tokens` rows.

    held_frames: how many of the first frames the cloud has already. They came on an earlier
    stream of this session, or in a session that began with the same frames.
    max_frames_in_flight: most frames that the cloud takes before it has answered the first of
    them; a server of an older version does not say and takes 16. token_rows: how many first tokens
    it takes in token frames; an older version takes none. continued: it holds the tokens that the
    Open asked to go on from, and waits for their keys and values of the other layers. draft_ids:
    how many tokens it guesses beyond an answer at most; an older version guesses none.
    max_positions: how far positions may reach while tokens leave the cache; 0, and in an older
    version: none may leave. recall: frames may refer to the session's earlier rows.
    """

    session_id: str
    max_frame_tokens: int
    held_frames: int = 0
    max_frames_in_flight: int = DEFAULT_FRAMES_IN_FLIGHT
    token_rows: int = 0
    draft_ids: int = 0
    continued: bool = False
    max_positions: int = 0
    recall: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a frame's time went in the cloud, in seconds, and whom it shared a batch with."""

    codec_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    sample_s: float = 0.0
    batch_sessions: int = 0
    batch_rows: int = 0

    @property
    def total_s(self) -> float:
        """All of it, seconds."""
        return self.codec_s + self.queue_s + self.compute_s + self.sample_s


class DraftChoice(NamedTuple):
    """One token for a position. confidence: how likely the drafter holds it, 0 to 1."""

    token_id: int
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """What the cloud guesses beyond an answer; it promises nothing.

    choices: for each position from `first_position` on equally many, the guess first and then
    others in its place. A guess stands if all guesses before it do. source: which drafter of the
    cloud it was, by number.
    """

    first_position: int
    choices: tuple[tuple[DraftChoice, ...], ...]
    source: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to the frame with the same `sequence`.

    token_ids: the accepted drafts and one token of the cloud's own; empty for a prefill chunk
    that wanted none, and for a frame sent ahead on a wrong guess. logprobs: natural-log
    probabilities of these, when asked for. top: each token's most likely ones, when asked for.
    prompt_logprobs: of the prompt tokens among the frame's rows, when asked for; position 0 has
    none. prompt_top_ids, prompt_top_logprobs: the most likely tokens beside each of these, equally
    many for each, one after the other (uint32, float32): a tuple would take ten times the memory.
    drafts: what the cloud's drafters guess beyond `token_ids`. entropies, prompt_entropies: how
    surprising each of `token_ids` was, and each prompt token of the frame's rows but that of
    position 0, when asked for (`protos.entropy_bytes`).
    """

    sequence: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    num_tokens: int
    timings: Timings = field(default_factory=Timings)
    top: tuple[tuple[TopToken, ...], ...] = ()
    prompt_logprobs: tuple[float, ...] = ()
    prompt_top_ids: array[int] = field(default_factory=no_ids)
    prompt_top_logprobs: array[float] = field(default_factory=no_logprobs)
    drafts: tuple[Drafts, ...] = ()
    entropies: bytes = b""
    prompt_entropies: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The cloud has freed the session; `detail` says why when it was not the edge's wish."""

    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBundle:
    """One of the bundles of a server. name: of its folder there.

    first_layer: lowest split that is served of its model. active_sessions and the KV cache's bytes
    are the model's: bundles of one model share them.
    """

    name: str
    manifest_sha256: str
    model_id: str
    model_sha256: str
    split: int
    first_layer: int
    num_layers: int
    hidden_size: int
    max_tokens: int
    active_sessions: int = 0
    kv_bytes_in_use: int = 0
    kv_bytes_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a server serves, and how full it is.

    The model's figures are those of the first bundle; sessions and bytes those of the whole server.
    bundles: all of them; none from a server of an earlier version, which serves one.
    """

    model_id: str
    model_sha256: str
    first_layer: int
    num_layers: int
    hidden_size: int
    max_tokens: int
    active_sessions: int
    kv_bytes_in_use: int
    kv_bytes_limit: int
    bundles: tuple[ServedBundle, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeChunk:
    """One message of the link probe: `padding_bytes` zeros, asking for `want_bytes` back."""

    sequence: int
    padding_bytes: int
    want_bytes: int = 0


EdgeMessage: TypeAlias = Open | Frame | Close
CloudMessage: TypeAlias = Opened | Result | Closed | Drafts
