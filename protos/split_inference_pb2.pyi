from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EdgeMessage(_message.Message):
    __slots__ = ("open", "frame", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: Open
    frame: Frame
    close: Close
    def __init__(self, open: _Optional[_Union[Open, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class CloudMessage(_message.Message):
    __slots__ = ("opened", "result", "closed", "drafts")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    opened: Opened
    result: Result
    closed: Closed
    drafts: Drafts
    def __init__(self, opened: _Optional[_Union[Opened, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., drafts: _Optional[_Union[Drafts, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("protocol_version", "session_id", "model_sha256", "split", "hidden_size", "codec_tables_sha256", "max_tokens", "sampling", "resume_s", "prefix_hashes", "shareable_tokens", "prefix_salt", "token_rows", "continues", "kv_tokens", "prompt_tokens", "end_token_ids", "draft_ids", "max_positions", "entropies", "recall")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    CODEC_TABLES_SHA256_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RESUME_S_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HASHES_FIELD_NUMBER: _ClassVar[int]
    SHAREABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_SALT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTINUES_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    session_id: str
    model_sha256: str
    split: int
    hidden_size: int
    codec_tables_sha256: str
    max_tokens: int
    sampling: Sampling
    resume_s: float
    prefix_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    shareable_tokens: int
    prefix_salt: bytes
    token_rows: int
    continues: str
    kv_tokens: int
    prompt_tokens: int
    end_token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_ids: int
    max_positions: int
    entropies: bool
    recall: bool
    def __init__(self, protocol_version: _Optional[int] = ..., session_id: _Optional[str] = ..., model_sha256: _Optional[str] = ..., split: _Optional[int] = ..., hidden_size: _Optional[int] = ..., codec_tables_sha256: _Optional[str] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., resume_s: _Optional[float] = ..., prefix_hashes: _Optional[_Iterable[bytes]] = ..., shareable_tokens: _Optional[int] = ..., prefix_salt: _Optional[bytes] = ..., token_rows: _Optional[int] = ..., continues: _Optional[str] = ..., kv_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., end_token_ids: _Optional[_Iterable[int]] = ..., draft_ids: _Optional[int] = ..., max_positions: _Optional[int] = ..., entropies: _Optional[bool] = ..., recall: _Optional[bool] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "logprobs", "frequency_penalty", "presence_penalty", "bias_ids", "bias_values", "grammar", "top_logprobs", "prompt_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    BIAS_VALUES_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    seed: int
    logprobs: bool
    frequency_penalty: float
    presence_penalty: float
    bias_ids: _containers.RepeatedScalarFieldContainer[int]
    bias_values: _containers.RepeatedScalarFieldContainer[float]
    grammar: Grammar
    top_logprobs: int
    prompt_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., logprobs: _Optional[bool] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., bias_ids: _Optional[_Iterable[int]] = ..., bias_values: _Optional[_Iterable[float]] = ..., grammar: _Optional[_Union[Grammar, _Mapping]] = ..., top_logprobs: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ...) -> None: ...

class Grammar(_message.Message):
    __slots__ = ("kind", "text")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "first_position", "token_ids", "hidden", "num_drafts", "want_token", "ahead", "kv", "kept")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    WANT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    first_position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    hidden: bytes
    num_drafts: int
    want_token: bool
    ahead: bool
    kv: bytes
    kept: bytes
    def __init__(self, sequence: _Optional[int] = ..., first_position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., hidden: _Optional[bytes] = ..., num_drafts: _Optional[int] = ..., want_token: _Optional[bool] = ..., ahead: _Optional[bool] = ..., kv: _Optional[bytes] = ..., kept: _Optional[bytes] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("session_id", "max_frame_tokens", "held_frames", "max_frames_in_flight", "token_rows", "continued", "draft_ids", "max_positions", "recall")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HELD_FRAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAMES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ROWS_FIELD_NUMBER: _ClassVar[int]
    CONTINUED_FIELD_NUMBER: _ClassVar[int]
    DRAFT_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    max_frame_tokens: int
    held_frames: int
    max_frames_in_flight: int
    token_rows: int
    continued: bool
    draft_ids: int
    max_positions: int
    recall: bool
    def __init__(self, session_id: _Optional[str] = ..., max_frame_tokens: _Optional[int] = ..., held_frames: _Optional[int] = ..., max_frames_in_flight: _Optional[int] = ..., token_rows: _Optional[int] = ..., continued: _Optional[bool] = ..., draft_ids: _Optional[int] = ..., max_positions: _Optional[int] = ..., recall: _Optional[bool] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("sequence", "token_ids", "logprobs", "num_tokens", "timings", "top_ids", "top_logprobs", "prompt_logprobs", "prompt_top_ids", "prompt_top_logprobs", "drafts", "entropies", "prompt_entropies")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_ENTROPIES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    num_tokens: int
    timings: Timings
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    prompt_logprobs: _containers.RepeatedScalarFieldContainer[float]
    prompt_top_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    drafts: _containers.RepeatedCompositeFieldContainer[Drafts]
    entropies: bytes
    prompt_entropies: bytes
    def __init__(self, sequence: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., num_tokens: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ..., prompt_logprobs: _Optional[_Iterable[float]] = ..., prompt_top_ids: _Optional[_Iterable[int]] = ..., prompt_top_logprobs: _Optional[_Iterable[float]] = ..., drafts: _Optional[_Iterable[_Union[Drafts, _Mapping]]] = ..., entropies: _Optional[bytes] = ..., prompt_entropies: _Optional[bytes] = ...) -> None: ...

class Drafts(_message.Message):
    __slots__ = ("first_position", "width", "token_ids", "confidences", "source")
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    first_position: int
    width: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    confidences: bytes
    source: int
    def __init__(self, first_position: _Optional[int] = ..., width: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., confidences: _Optional[bytes] = ..., source: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("codec_s", "queue_s", "compute_s", "sample_s", "batch_sessions", "batch_rows")
    CODEC_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    codec_s: float
    queue_s: float
    compute_s: float
    sample_s: float
    batch_sessions: int
    batch_rows: int
    def __init__(self, codec_s: _Optional[float] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., sample_s: _Optional[float] = ..., batch_sessions: _Optional[int] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Closed(_message.Message):
    __slots__ = ("detail",)
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    detail: str
    def __init__(self, detail: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Description(_message.Message):
    __slots__ = ("protocol_version", "model_id", "model_sha256", "first_layer", "num_layers", "hidden_size", "max_tokens", "active_sessions", "kv_bytes_in_use", "kv_bytes_limit", "bundles")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_IN_USE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    model_id: str
    model_sha256: str
    first_layer: int
    num_layers: int
    hidden_size: int
    max_tokens: int
    active_sessions: int
    kv_bytes_in_use: int
    kv_bytes_limit: int
    bundles: _containers.RepeatedCompositeFieldContainer[ServedBundle]
    def __init__(self, protocol_version: _Optional[int] = ..., model_id: _Optional[str] = ..., model_sha256: _Optional[str] = ..., first_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., max_tokens: _Optional[int] = ..., active_sessions: _Optional[int] = ..., kv_bytes_in_use: _Optional[int] = ..., kv_bytes_limit: _Optional[int] = ..., bundles: _Optional[_Iterable[_Union[ServedBundle, _Mapping]]] = ...) -> None: ...

class ServedBundle(_message.Message):
    __slots__ = ("name", "manifest_sha256", "model_id", "model_sha256", "split", "first_layer", "num_layers", "hidden_size", "max_tokens", "active_sessions", "kv_bytes_in_use", "kv_bytes_limit")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_IN_USE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    manifest_sha256: str
    model_id: str
    model_sha256: str
    split: int
    first_layer: int
    num_layers: int
    hidden_size: int
    max_tokens: int
    active_sessions: int
    kv_bytes_in_use: int
    kv_bytes_limit: int
    def __init__(self, name: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., model_id: _Optional[str] = ..., model_sha256: _Optional[str] = ..., split: _Optional[int] = ..., first_layer: _Optional[int] = ..., num_layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., max_tokens: _Optional[int] = ..., active_sessions: _Optional[int] = ..., kv_bytes_in_use: _Optional[int] = ..., kv_bytes_limit: _Optional[int] = ...) -> None: ...

class ProbeChunk(_message.Message):
    __slots__ = ("sequence", "padding", "want_bytes")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    WANT_BYTES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    padding: bytes
    want_bytes: int
    def __init__(self, sequence: _Optional[int] = ..., padding: _Optional[bytes] = ..., want_bytes: _Optional[int] = ...) -> None: ...

class ListFilesRequest(_message.Message):
    __slots__ = ("protocol_version", "bundle")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    bundle: str
    def __init__(self, protocol_version: _Optional[int] = ..., bundle: _Optional[str] = ...) -> None: ...

class FileList(_message.Message):
    __slots__ = ("protocol_version", "manifest", "manifest_sha256", "bundle")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    manifest: bytes
    manifest_sha256: str
    bundle: ServedBundle
    def __init__(self, protocol_version: _Optional[int] = ..., manifest: _Optional[bytes] = ..., manifest_sha256: _Optional[str] = ..., bundle: _Optional[_Union[ServedBundle, _Mapping]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("protocol_version", "manifest_sha256", "name", "offset", "max_chunk_bytes")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    manifest_sha256: str
    name: str
    offset: int
    max_chunk_bytes: int
    def __init__(self, protocol_version: _Optional[int] = ..., manifest_sha256: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...
