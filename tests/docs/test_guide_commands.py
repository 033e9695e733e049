"""Every command of the guides and of the README works: it runs here, or its parser accepts it."""

from __future__ import annotations

import io
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final

import pytest

from splitpoint.cli import main
from tests.docs.guide_shell import (
    FENCE,
    MODEL,
    NUM_LAYERS,
    ROOT,
    GuideShell,
    blocks_of,
    check_splitpoint,
    commands_of,
    leaf_of,
    words_of,
)
from tests.tiny_models import make_tiny_model

GUIDES: Final = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES: Final = [ROOT / "README.md", *GUIDES]
TEMPLATE: Final = (
    "{% if tools %}<s>tools: {{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
# What a guide takes as made already: it begins where another one ends.
GIVEN: Final = {
    "bad-links.md": ("bundle",),
    "cluster.md": ("bundle",),
    "device-page.md": ("bundle",),
    "drafting.md": (MODEL, "bundle"),
    "fetching-a-bundle.md": ("bundle",),
    "from-the-openai-api.md": ("bundle",),
    "planning-a-deployment.md": (MODEL, "held-out.txt", "server"),
    "simulating-a-fleet.md": ("plan.yaml", "examples"),
    "status-page.md": ("bundle",),
    "termux.md": ("bundle",),
}
# A guide whose point is the calibration calibrates; other builds leave it out, for time.
CALIBRATED: Final = ("--calibration-text", "wide-20")
PLAIN: Final = ["--model", MODEL, "--split", "2", "--front-bits", "4", "--back-bits", "8"]
# Options without which all bundles are alike to the server of every guide.
SHARED_SERVERS: Final = (["bundle"], ["bundle", "--kv-memory", "1GiB"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Workshop:
    """What all guides share: the tiny model, bundles by how they are built, one plain server."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "model"
        make_tiny_model(
            "llama", self.model, max_position_embeddings=2048, num_hidden_layers=NUM_LAYERS
        )
        (self.model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
        self._bundles: dict[str, Path] = {}
        self._profile: Path | None = None
        self._plain: tuple[GuideShell, int] | None = None

    def build(self, arguments: list[str], folder: Path) -> None:
        """Make the bundle, or copy one that was made with the same words."""
        place = arguments.index("--out")
        name = arguments[place + 1]
        others = [*arguments[:place], *arguments[place + 2 :]]
        files = [folder / word for word in others if (folder / word).is_file()]
        key = repr((others, [file.read_bytes() for file in files]))
        if key not in self._bundles:
            short = any(word in CALIBRATED for word in arguments)
            cut = ("--calibration-tokens", "256") if short else ("--no-calibrate",)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                assert main(["build", *arguments, *cut]) == 0
            self._bundles[key] = self.root / f"bundle-{len(self._bundles)}"
            shutil.copytree(folder / name, self._bundles[key])
        else:
            shutil.copytree(self._bundles[key], folder / name)

    def profile(self) -> Path:
        """The profile of this machine, measured once."""
        if self._profile is None:
            self._profile = self.root / "edge.yaml"
            assert (
                main(
                    ["profile", "device", "--quick", "--role", "edge", "--out", str(self._profile)]
                )
                == 0
            )
        return self._profile

    def plain_server(self) -> int:
        """The port of the server that most guides start with `splitpoint serve bundle`."""
        if self._plain is None:
            shell = GuideShell(self.root, self.model, self.build, free_port)
            port = free_port()
            shell.use("50051", port)
            self.bundle(self.root)
            shell.run("splitpoint serve bundle --listen 127.0.0.1:50051")
            self._plain = (shell, port)
        return self._plain[1]

    def bundle(self, folder: Path) -> None:
        """The bundle that guides begin with."""
        shutil.copytree(self.model, folder / MODEL, dirs_exist_ok=True)
        self.build([*PLAIN, "--weights", "copy", "--out", "bundle"], folder)

    def close(self) -> None:
        if self._plain is not None:
            self._plain[0].close()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    root = tmp_path_factory.mktemp("guides")
    patch = pytest.MonkeyPatch()
    patch.chdir(root)
    found = Workshop(root)
    yield found
    found.close()
    patch.undo()


@pytest.fixture
def shell(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], GuideShell]]:
    """`shell(page)`: the folder of that guide, with what the guide takes as given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what `run` fetches
    found = GuideShell(tmp_path, workshop.model, workshop.build, free_port)

    def opened(page: Path) -> GuideShell:
        for name in GIVEN.get(page.name, ()):
            give(name, workshop, found)
        return found

    yield opened
    found.close()


def give(name: str, workshop: Workshop, shell: GuideShell) -> None:
    """Put into the guide's folder what an earlier guide has made."""
    folder = shell.folder
    if name == MODEL:
        shutil.copytree(workshop.model, folder / MODEL, dirs_exist_ok=True)
    elif name == "bundle":
        workshop.bundle(folder)
    elif name == "held-out.txt":
        (folder / name).write_text("The pump reports forty degrees again. " * 60, encoding="utf-8")
    elif name == "examples":
        shutil.copytree(ROOT / "examples", folder / name)
    elif name == "server":
        shell.use("50051", workshop.plain_server())
    else:
        give(MODEL, workshop, shell)
        shell.run(
            f"splitpoint plan --model {MODEL} --edge raspberry-pi-5-8gb --cloud l4-24gb "
            f"--link 4g --out {name}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_work(
    page: Path, shell: Callable[[Path], GuideShell], workshop: Workshop
) -> None:
    there = shell(page)
    for language, text in blocks_of(page):
        if language == "sh":
            for command in commands_of(text):
                step(command, there, workshop)
        if language == "python":
            with redirect_stdout(io.StringIO()) as printed:
                exec(compile(there.here(text), str(page), "exec"), {"__name__": "guide"})
            assert printed.getvalue().strip(), text


def step(command: str, shell: GuideShell, workshop: Workshop) -> None:
    """One command of a guide; what all guides share is made once."""
    words = words_of(command)
    if words[:2] == ["splitpoint", "serve"] and words[2:] in SHARED_SERVERS:
        check_splitpoint(words[1:])
        shell.use("50051", workshop.plain_server())
    elif words[:3] == ["splitpoint", "profile", "device"] and "cloud" not in words:
        check_splitpoint(words[1:])
        shutil.copy(workshop.profile(), shell.folder / words[words.index("--out") + 1])
    else:
        shell.run(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_guide_is_in_a_block_that_is_tested(page: Path) -> None:
    others = [text for language, text in blocks_of(page) if language not in ("sh", "python")]
    indented = FENCE.sub("", page.read_text(encoding="utf-8"))
    lines = [line for text in others for line in text.splitlines()]
    lines += [line.strip() for line in indented.splitlines() if line.startswith("    ")]
    assert [line for line in lines if line.startswith(("splitpoint ", "curl ", "openssl "))] == []


def test_a_wrong_option_or_value_is_found() -> None:
    for wrong in ("run bundle --chatt x", "serve b --max-sessions many", "profile list now"):
        with pytest.raises(Exception, match=r"(?i)no such option|valid integer|unexpected"):
            check_splitpoint(wrong.split())
    with pytest.raises(AssertionError, match="no command"):
        leaf_of(["frobnicate", "x"])


def test_commands_are_told_apart() -> None:
    text = "a b \\\n  c  # why\n# only a comment\ncurl -d '{\n 1}'\n"
    found: list[Any] = [words_of(command) for command in commands_of(text)]
    assert found == [["a", "b", "c"], ["curl", "-d", "{\n 1}"]]
