"""Messages survive the wire; hostile bytes give RemoteWireError and nothing else."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.grammar import MAX_GRAMMAR_BYTES, Grammar
from decoding.params import MAX_BIASED_TOKENS, SamplingParams
from decoding.scores import TopToken
from protos import decode as decoding_side
from protos import pull, wire
from protos import split_inference_pb2 as pb
from protos.bundle_fields import bundle_from_proto, bundle_to_proto
from protos.bundle_names import bundles_line, is_named
from protos.errors import LocalWireError, RemoteWireError, VersionError
from protos.messages import (
    Close,
    Closed,
    CloudMessage,
    Description,
    DraftChoice,
    Drafts,
    EdgeMessage,
    Frame,
    Open,
    Opened,
    ProbeChunk,
    Result,
    ServedBundle,
    Timings,
)
from protos.prefix import begin_chain

SHA = "ab" * 32

EDGE_MESSAGES: list[tuple[EdgeMessage, str]] = [
    (
        Open(
            session_id="s-1",
            model_sha256=SHA,
            split=10,
            hidden_size=576,
            codec_tables_sha256=SHA,
            max_tokens=2048,
            sampling=SamplingParams(temperature=0.5, top_k=40, seed=9),
        ),
        "0aa8010801120"
        "3732d311a40" + SHA.encode().hex() + "200a28c00432"
        "40" + SHA.encode().hex() + "38801042130d0000003f150000803f18282d0000803f3009",
    ),
    (
        Frame(sequence=2, first_position=5, token_ids=(7, 300), hidden=b"\x01\x02", num_drafts=1),
        "1211080210051a0307ac022202010228013001",
    ),
    (Close(), "1a00"),
]

CLOUD_MESSAGES: list[tuple[CloudMessage, str]] = [
    (Opened(session_id="s-1", max_frame_tokens=512), "0a080a03732d31108004"),
    (
        Result(
            sequence=2,
            token_ids=(7, 8),
            logprobs=(-0.5, -0.25),
            num_tokens=8,
            timings=Timings(compute_s=0.5, batch_sessions=2, batch_rows=3),
        ),
        "121d0802120207081a08000000bf000080be20082a091d0000003f28023003",
    ),
    (Closed(detail="drained"), "1a090a07647261696e6564"),
    (
        Opened(session_id="s-1", max_frame_tokens=512, max_frames_in_flight=32),
        "0a0a0a03732d311080042020",
    ),
    (
        Drafts(
            first_position=9,
            choices=(
                (DraftChoice(7, 0.8), DraftChoice(300, 0.2)),
                (DraftChoice(8, 1.0), DraftChoice(0, 0.0)),
            ),
            source=1,
        ),
        "2213080910021a0507ac020800" + "2204cc33ff00" + "2801",
    ),
]


@pytest.mark.parametrize(("message", "golden"), EDGE_MESSAGES)
def test_edge_messages_have_golden_bytes_and_come_back_equal(
    message: EdgeMessage, golden: str
) -> None:
    assert wire.encode_edge(message).hex() == golden
    assert wire.decode_edge(bytes.fromhex(golden)) == message


@pytest.mark.parametrize(("message", "golden"), CLOUD_MESSAGES)
def test_cloud_messages_have_golden_bytes_and_come_back_equal(
    message: CloudMessage, golden: str
) -> None:
    assert wire.encode_cloud(message).hex() == golden
    assert wire.decode_cloud(bytes.fromhex(golden)) == message


def test_guesses_go_along_with_an_answer_and_come_back_equal() -> None:
    drafts = Drafts(first_position=3, choices=((DraftChoice(5, 0.6),),), source=2)
    result = Result(sequence=1, token_ids=(4,), num_tokens=2, drafts=(drafts,))
    assert wire.decode_cloud(wire.encode_cloud(result)) == result


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"width": 0, "token_ids": [1], "confidences": b"1"}, "0 choices"),
        ({"width": 9, "token_ids": [1] * 9, "confidences": b"1" * 9}, "9 choices"),
        ({"width": 2, "token_ids": [1], "confidences": b"1"}, "1 tokens in rows of 2"),
        ({"width": 1, "token_ids": [1] * 33, "confidences": b"1" * 33}, "33 tokens"),
        ({"width": 1, "token_ids": [1], "confidences": b""}, "as many confidences"),
        ({"width": 1, "source": 8}, "out of range"),
        ({"width": 1, "first_position": 1 << 25}, "out of range"),
    ],
)
def test_guesses_out_of_range_are_refused(fields: dict[str, Any], wrong: str) -> None:
    data = pb.CloudMessage(drafts=pb.Drafts(**fields)).SerializeToString()
    with pytest.raises(RemoteWireError, match=wrong):
        wire.decode_cloud(data)


def test_guesses_of_unequal_width_are_a_fault_of_ours() -> None:
    choices = ((DraftChoice(1, 0.5),), (DraftChoice(1, 0.5), DraftChoice(2, 0.5)))
    with pytest.raises(LocalWireError, match="equally many"):
        wire.encode_cloud(Drafts(first_position=0, choices=choices))


def test_an_open_and_an_opened_without_guesses_are_the_bytes_of_before() -> None:
    """An edge or a server of an older version says nothing of guesses, and sees nothing of them."""
    old_open = wire.decode_edge(bytes.fromhex(EDGE_MESSAGES[0][1]))
    assert isinstance(old_open, Open)
    assert old_open.draft_ids == 0
    old_opened = wire.decode_cloud(bytes.fromhex(CLOUD_MESSAGES[0][1]))
    assert isinstance(old_opened, Opened)
    assert old_opened.draft_ids == 0
    asking = wire.decode_edge(wire.encode_edge(replace(old_open, draft_ids=8)))
    assert isinstance(asking, Open)
    assert asking.draft_ids == 8


def test_descriptions_and_probes_come_back_equal() -> None:
    description = Description(
        model_id="m",
        model_sha256=SHA,
        first_layer=5,
        num_layers=30,
        hidden_size=576,
        max_tokens=2048,
        active_sessions=3,
        kv_bytes_in_use=1 << 33,
        kv_bytes_limit=1 << 34,
    )
    assert wire.decode_description(wire.encode_description(description)) == description
    chunk = ProbeChunk(sequence=1, padding_bytes=100, want_bytes=7)
    assert wire.decode_probe(wire.encode_probe(chunk)) == chunk


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_the_wire_error(data: bytes) -> None:
    for decode in (wire.decode_edge, wire.decode_cloud, wire.decode_description, wire.decode_probe):
        try:
            decode(data)
        except RemoteWireError:
            continue


@given(st.sampled_from(EDGE_MESSAGES), st.integers(0, 400), st.integers(0, 255))
def test_changed_bytes_raise_nothing_but_the_wire_error(
    case: tuple[EdgeMessage, str], index: int, value: int
) -> None:
    data = bytearray(bytes.fromhex(case[1]))
    data[index % len(data)] = value
    try:
        wire.decode_edge(bytes(data))
    except RemoteWireError:
        return


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (Frame(sequence=0, first_position=0, token_ids=(), hidden=b""), "token_ids"),
        (Frame(sequence=0, first_position=0, token_ids=(1,), hidden=b"", num_drafts=1), "num_dra"),
        (
            Frame(sequence=0, first_position=0, token_ids=(1,) * 1025, hidden=b""),
            "token_ids",
        ),
        (
            Frame(sequence=0, first_position=wire.MAX_TOKENS + 1, token_ids=(1,), hidden=b""),
            "first_position",
        ),
        *(
            (
                replace(
                    Frame(
                        sequence=0,
                        first_position=0,
                        token_ids=(1, 2),
                        hidden=b"",
                        want_token=False,
                        kv=b"kv",
                    ),
                    **more,
                ),
                "a frame with kv brings ids and nothing else",
            )
            for more in ({"hidden": b"x"}, {"want_token": True}, {"num_drafts": 1}, {"ahead": True})
        ),
    ],
)
def test_frames_out_of_range_are_refused_with_the_field(frame: Frame, reason: str) -> None:
    with pytest.raises(RemoteWireError, match=reason):
        wire.decode_edge(wire.encode_edge(frame))


@pytest.mark.parametrize("session_id", ["", "x" * 65, "a b", "ü", "../x"])
def test_session_ids_are_plain_words(session_id: str) -> None:
    opened = Opened(session_id=session_id, max_frame_tokens=1)
    with pytest.raises(RemoteWireError, match="session_id"):
        wire.decode_cloud(wire.encode_cloud(opened))


def test_a_server_that_does_not_say_takes_sixteen_frames_at_once() -> None:
    opened = wire.decode_cloud(bytes.fromhex("0a080a03732d31108004"))
    assert isinstance(opened, Opened)
    assert opened.max_frames_in_flight == 16


@pytest.mark.parametrize("count", [0, wire.MAX_FRAMES_IN_FLIGHT + 1])
def test_a_server_must_take_some_frames_but_not_any_number(count: int) -> None:
    opened = Opened(session_id="s", max_frame_tokens=1, max_frames_in_flight=count)
    with pytest.raises(RemoteWireError, match="max_frames_in_flight"):
        wire.decode_cloud(wire.encode_cloud(opened))


def test_an_oversized_message_is_refused_on_both_sides() -> None:
    frame = Frame(
        sequence=0, first_position=0, token_ids=(1,), hidden=bytes(wire.MAX_MESSAGE_BYTES)
    )
    with pytest.raises(LocalWireError, match="at most"):
        wire.encode_edge(frame)
    with pytest.raises(RemoteWireError, match="at most"):
        wire.decode_edge(bytes(wire.MAX_MESSAGE_BYTES + 1))


def test_a_negative_number_is_a_local_error() -> None:
    with pytest.raises(LocalWireError):
        wire.encode_edge(Frame(sequence=-1, first_position=0, token_ids=(1,), hidden=b""))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0.01])
def test_log_probabilities_that_are_none_are_refused(value: float) -> None:
    result = Result(sequence=0, token_ids=(1,), logprobs=(value,), num_tokens=1)
    with pytest.raises(RemoteWireError, match="finite and not above 0"):
        wire.decode_cloud(wire.encode_cloud(result))


def test_a_log_probability_may_round_to_just_above_zero() -> None:
    result = Result(sequence=0, token_ids=(1,), logprobs=(1e-6,), num_tokens=1)
    decoded = wire.decode_cloud(wire.encode_cloud(result))
    assert isinstance(decoded, Result)


@pytest.mark.parametrize("value", [float("nan"), -1e-9, 1e6])
def test_times_that_are_none_are_refused(value: float) -> None:
    result = Result(sequence=0, token_ids=(), num_tokens=1, timings=Timings(queue_s=value))
    with pytest.raises(RemoteWireError, match="timings must be finite"):
        wire.decode_cloud(wire.encode_cloud(result))


def test_a_peers_words_become_one_line_that_a_terminal_can_show() -> None:
    closed = wire.decode_cloud(wire.encode_cloud(Closed(detail="bye\n\x1b[31m" + "x" * 380)))
    assert isinstance(closed, Closed)
    assert closed.detail.startswith("bye??[31m")
    assert closed.detail.isprintable()


def _opens(salt: bytes = b"s" * 32) -> tuple[Open, Open]:
    """The Open of the golden bytes, and the same with a salt."""
    plain = EDGE_MESSAGES[0][0]
    assert isinstance(plain, Open)
    return plain, replace(plain, prefix_salt=salt)


def test_a_salt_travels_and_an_open_without_one_is_that_of_the_last_version() -> None:
    plain, salted = _opens()
    assert wire.decode_edge(wire.encode_edge(salted)) == salted
    assert begin_chain(salted) != begin_chain(plain)
    assert salted.prefix_salt.hex() not in repr(salted)


@pytest.mark.parametrize("size", [1, 15, 65])
def test_a_salt_is_too_long_to_guess(size: int) -> None:
    _, salted = _opens(bytes(size))
    with pytest.raises(RemoteWireError, match="prefix_salt"):
        wire.decode_edge(wire.encode_edge(salted))


EXTENDED: dict[str, SamplingParams] = {
    "frequency": SamplingParams(frequency_penalty=0.5),
    "presence": SamplingParams(presence_penalty=-2),
    "bias": SamplingParams(logit_bias={7: -100, 3: 0.5}),
    "grammar": SamplingParams(grammar=Grammar(kind="regex", text="a+")),
    "object": SamplingParams(grammar=Grammar(kind="json_object")),
    "top": SamplingParams(logprobs=True, top_logprobs=20),
    "prompt": SamplingParams(prompt_logprobs=0),
}


def _extended(sampling: SamplingParams) -> Open:
    return replace(_opens()[0], sampling=sampling, prompt_tokens=9, end_token_ids=(2, 5))


@pytest.mark.parametrize("name", EXTENDED)
def test_what_version_one_does_not_know_crosses_in_version_two(name: str) -> None:
    request = _extended(EXTENDED[name])
    if request.sampling.grammar is None:
        request = replace(request, end_token_ids=())  # nobody needs them
    data = wire.encode_edge(request)
    assert pb.EdgeMessage.FromString(data).open.protocol_version == 2
    assert wire.decode_edge(data) == request


def test_an_older_server_refuses_what_it_does_not_know_and_names_the_cure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It must not ignore a grammar and answer something else."""
    monkeypatch.setattr(decoding_side, "EXTENDED_VERSION", 1)
    with pytest.raises(VersionError, match="version 2, this side speaks 1: update the older one"):
        wire.decode_edge(wire.encode_edge(_extended(EXTENDED["grammar"])))


def test_what_a_move_says_comes_back_equal_and_is_nothing_without_one() -> None:
    frame = Frame(
        sequence=3, first_position=9, token_ids=(1, 2), hidden=b"", want_token=False, kv=b"keys"
    )
    assert wire.decode_edge(wire.encode_edge(frame)) == frame
    assert frame.is_tokens
    plain = _opens()[0]
    moving = replace(plain, continues="older", kv_tokens=77)
    assert wire.decode_edge(wire.encode_edge(moving)) == moving
    assert "older" not in repr(moving)
    opened = Opened(session_id="s", max_frame_tokens=9, continued=True)
    assert wire.decode_cloud(wire.encode_cloud(opened)) == opened
    without = replace(opened, continued=False)
    assert len(wire.encode_cloud(without)) < len(wire.encode_cloud(opened))


@pytest.mark.parametrize("changes", [{"continues": "no id"}, {"kv_tokens": 1 << 25}])
def test_a_move_that_nobody_may_ask_for_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RemoteWireError):
        wire.decode_edge(wire.encode_edge(replace(_opens()[0], **changes)))


def test_an_open_that_asks_for_nothing_new_keeps_its_bytes() -> None:
    plain = _opens()[0]
    told = replace(plain, prompt_tokens=9, end_token_ids=(2,))
    assert wire.encode_edge(told) == wire.encode_edge(plain)


def test_the_largest_grammar_bias_and_prefixes_fit_one_open() -> None:
    sampling = SamplingParams(
        grammar=Grammar(kind="lark", text="x" * MAX_GRAMMAR_BYTES),
        logit_bias=dict.fromkeys(range(1 << 20, (1 << 20) + MAX_BIASED_TOKENS), 1.5),
    )
    hashes = (b"h" * 32,) * wire.MAX_PREFIX_HASHES
    request = replace(_extended(sampling), prefix_hashes=hashes)
    assert wire.decode_edge(wire.encode_edge(request)) == request


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bias_ids": [1, 2], "bias_values": [1.0]}, "as many bias_values"),
        ({"bias_ids": [1], "bias_values": [101.0]}, "between -100 and 100"),
        ({"bias_ids": range(1025), "bias_values": [1.0] * 1025}, "at most 1024"),
        ({"frequency_penalty": float("nan")}, "frequency penalty"),
        ({"presence_penalty": 2.5}, "presence penalty"),
        ({"top_logprobs": 21, "logprobs": True}, "top logprobs"),
        ({"top_logprobs": 1}, "ask for those too"),
        ({"prompt_logprobs": 21}, "prompt logprobs"),
        ({"grammar": pb.Grammar(kind="yaml", text="a")}, "kind is one of"),
        ({"grammar": pb.Grammar(kind="regex")}, "needs its text"),
        ({"grammar": pb.Grammar(kind="regex", text="a" * (MAX_GRAMMAR_BYTES + 1))}, "65536"),
    ],
)
def test_sampling_that_nobody_may_ask_for_is_refused(fields: dict[str, Any], reason: str) -> None:
    message = pb.EdgeMessage.FromString(wire.encode_edge(_extended(SamplingParams())))
    sampling = {"top_p": 1.0, "repetition_penalty": 1.0, **fields}
    message.open.sampling.CopyFrom(pb.Sampling(**sampling))
    with pytest.raises(RemoteWireError, match=reason):
        wire.decode_edge(message.SerializeToString())


TOP = (TopToken(7, -0.25), TopToken(1, -2.0))


def test_top_tokens_and_a_prompts_scores_come_back_equal() -> None:
    result = Result(
        sequence=2,
        token_ids=(7, 8),
        logprobs=(-0.25, -0.5),
        num_tokens=8,
        top=(TOP, TOP),
        prompt_logprobs=(-0.5, -1.5),
        prompt_top_ids=array("I", [1, 2, 3, 4]),
        prompt_top_logprobs=array("f", [-1, -2, -0.5, -0.5]),
    )
    assert wire.decode_cloud(wire.encode_cloud(result)) == result


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"top_ids": [1, 2], "top_logprobs": [-1]}, "as many top log-probabilities"),
        ({"top_ids": [1, 2, 3], "top_logprobs": [-1] * 3}, "equally many"),
        ({"top_ids": range(42), "top_logprobs": [-1] * 42}, "at most 20"),
        ({"top_ids": [1, 2], "top_logprobs": [float("nan"), -1]}, "finite"),
        ({"top_ids": [1, 2, 3, 4], "top_logprobs": [-2, -1, -1, -2]}, "in the order"),
        ({"top_ids": [1, 1, 3, 4], "top_logprobs": [-1, -2, -1, -2]}, "comes twice"),
        ({"prompt_top_ids": [1], "prompt_top_logprobs": [-1]}, "for 0 positions"),
        ({"prompt_logprobs": [0.5]}, "not above 0"),
        ({"prompt_logprobs": [-0.5] * 1025}, "prompt_logprobs is 1025"),
    ],
)
def test_top_tokens_that_no_positions_can_have_are_refused(
    fields: dict[str, Any], reason: str
) -> None:
    message = pb.CloudMessage(result=pb.Result(token_ids=[5, 6], num_tokens=3, **fields))
    with pytest.raises(RemoteWireError, match=reason):
        wire.decode_cloud(message.SerializeToString())


def test_top_tokens_of_unequal_number_are_a_local_error() -> None:
    result = Result(sequence=0, token_ids=(7, 8), num_tokens=1, top=(TOP, TOP[:1]))
    with pytest.raises(LocalWireError, match="top tokens"):
        wire.encode_cloud(result)


def test_a_description_of_an_older_server_is_read_as_before_and_lists_no_bundles() -> None:
    recorded = bytes.fromhex("0801120474696e791a40") + SHA.encode()
    recorded += bytes.fromhex("20022804304038c801400348e80750d00f")
    description = wire.decode_description(recorded)
    assert (description.model_id, description.first_layer, description.num_layers) == ("tiny", 2, 4)
    assert (description.active_sessions, description.kv_bytes_in_use) == (3, 1000)
    assert description.bundles == ()
    assert wire.encode_description(description) == recorded


def served_bundle(**changes: Any) -> ServedBundle:
    bundle = ServedBundle(
        name="s10",
        manifest_sha256="cd" * 32,
        model_id="tiny",
        model_sha256=SHA,
        split=2,
        first_layer=0,
        num_layers=4,
        hidden_size=64,
        max_tokens=200,
    )
    return replace(bundle, **changes)


def test_a_description_with_bundles_comes_back_equal_and_an_old_client_reads_the_first() -> None:
    description = Description(
        model_id="tiny",
        model_sha256=SHA,
        first_layer=0,
        num_layers=4,
        hidden_size=64,
        max_tokens=200,
        active_sessions=5,
        kv_bytes_in_use=10,
        kv_bytes_limit=20,
        bundles=(served_bundle(active_sessions=4), served_bundle(name="other", model_id="b")),
    )
    sent = wire.encode_description(description)
    assert wire.decode_description(sent) == description
    assert sent.startswith(wire.encode_description(replace(description, bundles=())))


@pytest.mark.parametrize(
    "change",
    [{"model_sha256": "AB" * 32}, {"split": 5}, {"hidden_size": 0}, {"name": "n" * 256}],
)
def test_a_bundle_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteWireError):
        bundle_from_proto(bundle_to_proto(served_bundle(**change)))


def test_a_list_says_which_bundle_it_is_of_and_lies_are_refused() -> None:
    manifest = b"{}"
    sha256 = pull.FileList(manifest=manifest).sha256
    files = pull.FileList(manifest=manifest, bundle=served_bundle(manifest_sha256=sha256))
    assert pull.decode_file_list(pull.encode_file_list(files)) == files
    plain = pull.FileList(manifest=manifest)
    assert pull.decode_file_list(pull.encode_file_list(plain)) == plain
    lying = replace(files, bundle=served_bundle())
    with pytest.raises(RemoteWireError, match="another bundle"):
        pull.decode_file_list(pull.encode_file_list(lying))
    for wanted in ("", "s10", "ab" * 32):
        asked = pull.encode_list_files_request(wanted)
        assert pull.decode_list_files_request(asked) == wanted
    assert pull.encode_list_files_request() == bytes.fromhex("0801")  # as earlier versions ask
    with pytest.raises(LocalWireError):
        pull.encode_list_files_request("n" * 256)


def test_a_bundle_is_named_by_its_names_and_by_beginnings_of_its_hashes() -> None:
    bundle = served_bundle()
    for wanted in ("s10", "tiny", "cdcdcdcd", "cd" * 32, "abababab", SHA):
        assert is_named(wanted, bundle)
    for wanted in ("", "s1", "S10", "cdcdcdc", "cdcdcdce", "ABABABAB", "cd" * 33):
        assert not is_named(wanted, bundle)
    line = bundles_line([bundle] * 6)
    assert line.startswith("s10 (model tiny, split 2, cdcdcdcd), ")
    assert line.endswith(" and 2 more")
    long = served_bundle(name="n" * 200, model_id="m" * 200)
    assert len(bundles_line([long] * 64)) < wire.MAX_DETAIL_CHARS + 100
