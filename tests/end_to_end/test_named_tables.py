"""Several codec tables in one bundle: made, chosen, fetched, refused and kept, on a tiny model."""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.server.config import ServerConfig
from decoding.params import SamplingParams
from edge.client import EdgeClient
from edge.errors import InputError, RefusedError
from edge.generation.completion import CompletionRequest
from edge.net.credentials import Credentials
from edge.net.grpc_transport import GrpcTransport
from edge.pull.pulling import PullReport, pull
from edge.pull.source import GrpcFileSource
from hwprofiles.emulator.in_process import EmulatedLink
from hwprofiles.links.shape import LinkShape
from optimizer.artifacts.bundle import open_bundle, write_manifest
from optimizer.artifacts.manifest import sha256_of
from optimizer.errors import BuildError, BundleError
from optimizer.export.bundle_builder import Calibration, build_bundle
from optimizer.export.calibration import bundle_tables
from optimizer.export.calibration.bundle_tables import TablesWish, add_tables
from optimizer.export.calibration.calibrate import calibrate
from optimizer.policy.retry import RetryPolicy
from tests.conftest import ModelBench
from tests.end_to_end.servers import RunningServer, running_server

SPLIT = 2
LETTERS = "".join(random.Random(1).choices("abcdefghij ", k=6000))
DIGITS = "".join(random.Random(2).choices("0123456789+-=\n", k=6000))
OF_LETTERS = "".join(random.Random(3).choices("abcdefghij ", k=60))
OF_DIGITS = "".join(random.Random(4).choices("0123456789+-=\n", k=60))
WISH = TablesWish(name="digits", texts=(DIGITS,), num_tokens=2048)
REQUEST = CompletionRequest(max_new_tokens=12, ignore_eos=True, level="q3")


@pytest.fixture(scope="module")
def plain(bench: ModelBench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle as it is built, with its default tables."""
    folder = tmp_path_factory.mktemp("tables") / "plain"
    build_bundle(
        bench.source,
        bench.plan(SPLIT),
        folder,
        progress=lambda stage: None,
        calibration=Calibration(num_tokens=2048, text=LETTERS),
    )
    return folder


@pytest.fixture(scope="module")
def bundle(bench: ModelBench, plain: Path) -> Path:
    """The same with tables for digits."""
    out = plain.with_name("both")
    add_tables(plain, bench.source, WISH, out=out)
    return out


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[RunningServer]:
    with running_server(bundle, kv_memory_bytes=64 << 20) as running:
        yield running


def copy_of(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder))


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


def test_a_bundle_says_which_tables_it_has_and_what_they_promise(bundle: Path, plain: Path) -> None:
    opened = open_bundle(bundle, role="edge")
    assert list(opened.codec_tables()) == ["default", "digits"]
    facts = json.loads((bundle / "codec/digits/text.json").read_text())
    assert facts["fitted_tokens"] >= 2048
    assert DIGITS[:20] not in json.dumps(facts)
    promise = json.loads((bundle / f"codec/digits/split-{SPLIT}.quality.json").read_text())
    assert promise["tables_sha256"] == opened.files[f"codec/digits/split-{SPLIT}.tables"].sha256
    levels = {level["name"]: level for level in promise["levels"]}
    assert levels["lossless"]["kl"] == 0
    assert levels["q1"]["kl"] < levels["q5"]["kl"]
    assert levels["q1"]["bits_per_element"] > levels["q5"]["bits_per_element"]
    before, after = hashes(plain), hashes(bundle)
    assert {name for name in after if before.get(name) != after[name]} == {
        "manifest.json",
        f"codec/digits/split-{SPLIT}.tables",
        f"codec/digits/split-{SPLIT}.quality.json",
        "codec/digits/text.json",
    }


@pytest.mark.parametrize("tables", ["default", "digits", "auto"])
def test_lossless_gives_the_same_tokens_under_all_tables(
    bundle: Path, server: RunningServer, bench: ModelBench, tables: str
) -> None:
    request = CompletionRequest(max_new_tokens=12, ignore_eos=True, level="lossless")
    with EdgeClient(bundle, server.address, tables=tables) as client:
        answer = client.complete(OF_DIGITS, request)
    ids = bench.source.load_tokenizer()(OF_DIGITS, return_tensors="pt").input_ids
    whole = bench.whole.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert answer.token_ids == tuple(whole[0, ids.shape[1] :].tolist())
    assert answer.tables == ("default" if tables == "auto" else tables)


def test_the_cheaper_tables_are_taken_for_a_prompt_of_their_kind(
    bundle: Path, server: RunningServer
) -> None:
    with EdgeClient(bundle, server.address, tables="auto") as client:
        for prompt, name in ((OF_DIGITS, "digits"), (OF_LETTERS, "default")):
            found = client.complete(prompt, REQUEST).to_json()
            assert found["tables"] == name
            assert min(found["tables_bytes"], key=found["tables_bytes"].get) == name
            assert (
                client.complete(prompt, REQUEST).to_json()["tables_bytes"]
                == (found["tables_bytes"])
            )
    for name in ("default", "digits"):
        with EdgeClient(bundle, server.address, tables=name) as client:
            named = client.complete(OF_DIGITS, REQUEST)
        assert named.tables == name
        assert "tables_bytes" not in named.to_json()
        if name == "digits":
            with EdgeClient(bundle, server.address, tables="auto") as client:
                assert client.complete(OF_DIGITS, REQUEST).token_ids == named.token_ids


def test_a_chats_next_turn_computes_nothing_for_the_choice(
    bundle: Path, server: RunningServer
) -> None:
    with EdgeClient(bundle, server.address, tables="auto", prefill_chunk=16) as client:
        first = client.prompt_ids(OF_DIGITS)
        client.complete(OF_DIGITS, REQUEST)
        run = client.start_ids([*first, 60, 61, 62], REQUEST)
        for _ in run:
            pass
    sent = [step.num_rows for step in run.completion.steps if step.phase == "prefill"]
    assert sum(sent) < len(first)
    assert run.completion.tables == "digits"


def test_a_pull_brings_only_the_new_tables(
    plain: Path, bundle: Path, server: RunningServer, tmp_path: Path
) -> None:
    device = tmp_path / "device"
    assert pulled(plain, device).num_files == len(
        [name for name in hashes(plain) if not name.startswith(("cloud", "manifest"))]
    )
    transport = GrpcTransport(server.address, Credentials())
    try:
        report = pull(GrpcFileSource(transport), device)
    finally:
        transport.close()
    assert report.fetched
    assert all(name.startswith("codec/digits/") for name in report.fetched)
    with EdgeClient(device, server.address, tables="digits") as client:
        assert client.complete(OF_DIGITS, REQUEST).tables == "digits"


def pulled(bundle: Path, target: Path) -> PullReport:
    with running_server(bundle, kv_memory_bytes=64 << 20) as running:
        transport = GrpcTransport(running.address, Credentials())
        try:
            return pull(GrpcFileSource(transport), target)
        finally:
            transport.close()


def test_a_server_without_the_tables_refuses_them_and_auto_takes_the_default_ones(
    plain: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(plain, kv_memory_bytes=64 << 20) as old:
        with EdgeClient(bundle, old.address) as client:
            expected = client.complete(OF_DIGITS, REQUEST)
        with (
            EdgeClient(bundle, old.address, tables="digits") as client,
            pytest.raises(RefusedError, match="splitpoint pull"),
        ):
            client.complete(OF_DIGITS, REQUEST)
        with (
            caplog.at_level(logging.WARNING),
            EdgeClient(bundle, old.address, tables="auto") as client,
        ):
            answers = [client.complete(OF_DIGITS, REQUEST) for _ in range(2)]
    assert [answer.tables for answer in answers] == ["default", "default"]
    assert all(answer.token_ids == expected.token_ids for answer in answers)
    said = [record for record in caplog.records if "default tables" in record.getMessage()]
    assert len(said) == 1


def test_a_replay_keeps_the_tables(bundle: Path, server: RunningServer) -> None:
    request = CompletionRequest(
        max_new_tokens=40,
        ignore_eos=True,
        level="q3",
        sampling=SamplingParams(temperature=0.9, seed=5),
    )
    shape = LinkShape.fixed(rtt_s=0.004, up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6)
    host, port = server.address.split(":")
    with EdgeClient(bundle, server.address, tables="auto") as client:
        expected = client.complete(OF_DIGITS, request)
    with EmulatedLink(target=(host, int(port)), shape=shape) as link:
        address = f"{link.address[0]}:{link.address[1]}"
        patient = RetryPolicy(connect_s=30, step_s=5, recover_s=60)
        with EdgeClient(bundle, address, tables="auto", retry_policy=patient) as client:
            run = client.start(OF_DIGITS, request)
            for number, _ in enumerate(run):
                if number == 5:
                    link.drop_connections()
    assert run.completion.reconnects >= 1
    assert run.completion.tables == "digits"
    assert run.completion.token_ids == expected.token_ids


@pytest.fixture
def quick(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrations take the tables for digits instead of fitting any."""

    def copied(model: object, *, split: int, out: Path, **rest: object) -> str:
        out.parent.mkdir(parents=True)
        shutil.copy(bundle / f"codec/digits/split-{split}.tables", out)
        return sha256_of(out)

    monkeypatch.setattr(bundle_tables, "calibrate", copied)


@pytest.mark.parametrize("at", ["reading gradients", "measuring windows", "publish"])
@pytest.mark.usefixtures("quick")
def test_an_interrupted_calibration_leaves_the_bundle_as_it_was(
    plain: Path,
    bench: ModelBench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    if at == "reading gradients":
        monkeypatch.setattr(bundle_tables, "calibrate", calibrate)
    root = copy_of(plain, tmp_path / "bundle")
    before = hashes(root)

    def stop(*words: object) -> None:
        if at in ("publish", words[0]):
            raise KeyboardInterrupt

    if at == "publish":
        monkeypatch.setattr(bundle_tables, "publish", stop)
    with pytest.raises(KeyboardInterrupt):
        add_tables(
            root,
            bench.source,
            WISH,
            progress=None if at == "publish" else lambda *told: stop(*told),
        )
    assert hashes(root) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    open_bundle(root, role="edge")


@pytest.mark.usefixtures("quick")
def test_tables_are_replaced_only_when_that_is_asked_for(
    bundle: Path, bench: ModelBench, tmp_path: Path
) -> None:
    root = copy_of(bundle, tmp_path / "bundle")
    before = hashes(root)
    for name in ("digits", "default"):
        with pytest.raises(BuildError, match="--replace"):
            add_tables(root, bench.source, TablesWish(name=name, texts=(LETTERS,)))
    with pytest.raises(BundleError, match="cannot be named"):
        add_tables(root, bench.source, TablesWish(name="../up", texts=(LETTERS,)))
    assert hashes(root) == before
    both = TablesWish(
        name="digits", texts=(LETTERS, DIGITS), num_tokens=2048, replace=True, certified=False
    )
    added = add_tables(root, bench.source, both)
    assert len(added.text["texts_sha256"]) == 2
    name = f"codec/digits/split-{SPLIT}.quality.json"
    assert name in before
    assert not (root / name).exists()  # it was of the tables before
    assert name not in open_bundle(root, role="cloud").files
    assert hashes(root)[f"codec/split-{SPLIT}.tables"] == before[f"codec/split-{SPLIT}.tables"]
    assert added.tables[SPLIT] == sha256_of(root / f"codec/digits/split-{SPLIT}.tables")


@pytest.mark.usefixtures("quick")
def test_the_default_tables_can_be_fitted_anew(
    plain: Path, bench: ModelBench, tmp_path: Path
) -> None:
    root = copy_of(plain, tmp_path / "bundle")
    wish = TablesWish(
        name="default", texts=(DIGITS,), num_tokens=2048, replace=True, certified=False
    )
    before = hashes(root)
    add_tables(root, bench.source, wish)
    changed = {name for name, digest in hashes(root).items() if before.get(name) != digest}
    assert changed == {
        "manifest.json",
        "codec/text.json",
        f"codec/split-{SPLIT}.tables",
    }
    assert list(open_bundle(root, role="cloud").codec_tables()) == ["default"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hash", "was changed after the bundle was built"),
        ("split", "lack split 2"),
        ("many", "17 named tables"),
        ("name", "cannot be named"),
        ("width", "tables for hidden size"),
    ],
)
def test_tables_that_cannot_be_are_one_line_on_both_sides(
    bundle: Path, tmp_path: Path, change: str, words: str
) -> None:
    root = copy_of(bundle, tmp_path / "bundle")
    folder = root / "codec" / "digits"
    file = folder / f"split-{SPLIT}.tables"
    if change == "hash":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif change == "split":
        file.rename(folder / "split-3.tables")
    elif change == "many":
        for number in range(16):
            copy_of(folder, root / "codec" / f"more-{number}")
    elif change == "name":
        folder.rename(root / "codec" / "Digits!")
    elif change == "width":
        file.write_bytes(file.read_bytes().replace(b'"hidden_size": 64', b'"hidden_size": 96'))
    if change != "hash":
        write_manifest(root)
    with pytest.raises(Exception, match=words) as edge:
        EdgeClient(root, "127.0.0.1:1", tables="auto")
    running = RunningServer(ServerConfig(bundle=root, port=0, kv_memory_bytes=64 << 20))
    with pytest.raises(Exception, match=words) as cloud:
        running.start()
    for error in (edge, cloud):
        assert "\n" not in str(error.value)


def test_an_unknown_name_is_refused_with_those_there_are(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has default, digits .*did you mean digits"):
        EdgeClient(bundle, "127.0.0.1:1", tables="digit")
