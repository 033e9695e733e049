"""Codec tables for a bundle that is there: fitted to a text, certified, and put in place.

Everything is made in a folder beside the bundle: the new files, and the bundle with them, whose
other files are the same ones on the disk (hard links). At the end the folders change places. So an
interruption leaves the bundle as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from codec.ladder import Ladder
from hwprofiles.heap import trim_heap
from optimizer.artifacts.bundle import Bundle, open_bundle, record_files
from optimizer.artifacts.codec_tables import (
    check_count,
    checked_tables_name,
    quality_name,
    tables_folder,
    tables_name,
    text_name,
)
from optimizer.artifacts.manifest import MANIFEST_NAME, names_below, read_manifest
from optimizer.cost.build_memory import CALIBRATION_TOKENS
from optimizer.errors import BuildError
from optimizer.export.calibration.calibrate import (
    HELD_OUT_WINDOWS,
    WINDOW,
    TextWindows,
    calibrate,
    calibration_text,
    tokens_to_fit,
    windows_to_fit,
)
from optimizer.export.calibration.text import GIVEN_TEXT, OwnTextHints, own_text_hints
from optimizer.export.certify.certificate import Certificate, certify
from optimizer.export.disk_faults import naming_the_disk
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.passes import Progress
from optimizer.export.sources.model_source import ModelSource
from optimizer.export.working_folder import publish, working_folder

TEXT_FORMAT: Final = 1
# No tokenizer makes less than a token of so many characters of usual text.
_CHARS_A_TOKEN: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesWish:
    """What tables to make. texts: to fit to, in equal parts as far as they reach; none: as a build
    without text. num_tokens: at least so many are fitted to. device: what the layers compute on.
    certified: whether to measure the levels on the part that is held out of the fit.
    """

    name: str
    texts: tuple[str, ...] = ()
    num_tokens: int = CALIBRATION_TOKENS
    device: str = "cpu"
    replace: bool = False
    certified: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedTables:
    """What was made. tables: the file's SHA-256 by split. text: what `text.json` says.
    certificates: of each split, as far as text was held out."""

    bundle: Path
    name: str
    tables: dict[int, str]
    text: dict[str, Any]
    certificates: tuple[Certificate, ...]

    def to_json(self) -> dict[str, Any]:
        """The object `splitpoint calibrate --json` prints."""
        return {
            "bundle": str(self.bundle),
            "name": self.name,
            "tables_sha256": {str(split): digest for split, digest in self.tables.items()},
            "text": self.text,
            "certificates": [one.to_json() for one in self.certificates],
        }


def add_tables(
    root: Path,
    source: ModelSource,
    wish: TablesWish,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
) -> AddedTables:
    """Fit tables for each of a bundle's splits and add them to it, or to a copy of it at `out`.

    Raises BundleError for a name that tables cannot have and for too many, and BuildError for a
    name or an `out` that is taken, another model, too little text, and a bundle whose rows cross no
    link. The bundle is then as it was.
    """
    tell = progress or (lambda what, done, total: None)
    root = root.resolve()
    target = root if out is None else out.absolute()
    plan = _checked(root, source, wish, out)
    with naming_the_disk(target.parent), working_folder(target) as working:
        made = working / "codec-files"
        model = LayeredModel(source, folder=working, device=wish.device)
        ids, told = _text_of(model, source, wish)
        own = own_text_hints(source.load_tokenizer()) if ids is None else OwnTextHints()
        with model.in_bfloat16():
            windows = windows_to_fit(
                model, ids, num_tokens=wish.num_tokens, starts=own.starts, progress=tell
            )
        digests, certificates = {}, []
        for split in plan.splits:
            trim_heap()  # what the split before took is free
            path = made / tables_name(split, wish.name)
            digests[split] = calibrate(
                model, split=split, out=path, windows=windows, own=own, text=told, progress=tell
            )
            if wish.certified and len(windows[1]):
                ladder = Ladder.load(path, hidden_size=model.hidden_size)
                certificates.append(
                    certify(model, ladder, split=split, windows=windows[1], progress=tell)
                )
                _write_json(made / quality_name(split, wish.name), certificates[-1].to_json())
        text = _text_facts(wish.texts, told, windows)
        _write_json(made / text_name(wish.name), text)
        _install(root, made, working / "bundle", target, wish)
    return AddedTables(
        bundle=target,
        name=wish.name,
        tables=digests,
        text=text,
        certificates=tuple(certificates),
    )


def _checked(root: Path, source: ModelSource, wish: TablesWish, out: Path | None) -> Any:
    """The bundle's plan. Raises as `add_tables`, before anything is computed."""
    checked_tables_name(wish.name)
    if out is not None and os.path.lexists(out):
        raise BuildError(f"{out} exists already; choose another --out")
    opened = open_bundle(root, role="edge" if _has_edge(root) else "cloud")
    plan = opened.plan
    if plan.model.sha256 != source.sha256:
        raise BuildError(f"{root} was built from {plan.model.id}, not from {source.id}")
    if plan.edge_is_whole:
        raise BuildError(f"{root}: the whole model lies on the edge, so no rows are compressed")
    source.check()
    _check_name(opened, wish)
    return plan


def _has_edge(root: Path) -> bool:
    """Whether the bundle has the device's side; else only the server's is looked at."""
    path = root / MANIFEST_NAME
    return not path.is_file() or any(name.startswith("edge/") for name in read_manifest(path).files)


def _check_name(opened: Bundle, wish: TablesWish) -> None:
    """BuildError where the name is taken, BundleError where there are too many."""
    listed = opened.codec_tables()
    check_count([*listed, wish.name])
    if listed.get(wish.name) and not wish.replace:
        raise BuildError(
            f"{opened.root} has tables named {wish.name} (--replace fits them anew, --name NAME "
            "adds others)"
        )


def _text_of(
    model: LayeredModel, source: ModelSource, wish: TablesWish
) -> tuple[list[int] | None, str]:
    """Ids of the calibration text, None where the model writes it, and what the text is called."""
    if not wish.texts:
        return calibration_text(model, source, given=None, num_tokens=wish.num_tokens)
    most = max(wish.num_tokens, tokens_to_fit(model.hidden_size)) + HELD_OUT_WINDOWS * WINDOW
    tokenizer = source.load_tokenizer()
    parts = [
        list(tokenizer(text[: _CHARS_A_TOKEN * most])["input_ids"][:most]) for text in wish.texts
    ]
    return in_turn(parts, WINDOW), GIVEN_TEXT


def in_turn(parts: Sequence[list[int]], window: int) -> list[int]:
    """One whole window of each part after the other, as far as each reaches; then what is left."""
    taken: list[int] = []
    for begin in range(0, max(len(part) for part in parts), window):
        for part in parts:
            if begin + window <= len(part):
                taken += part[begin : begin + window]
    for part in parts:
        taken += part[len(part) // window * window :]
    return taken


def _text_facts(texts: Sequence[str], told: str, windows: TextWindows) -> dict[str, Any]:
    """What the bundle says of a text, without the text."""
    return {
        "format": TEXT_FORMAT,
        "text": told,
        "texts_sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
        "fitted_tokens": int(windows[0].size),
        "held_out_tokens": int(windows[1].size),
    }


def _install(root: Path, made: Path, copy: Path, target: Path, wish: TablesWish) -> None:
    """The bundle as `copy`, with the files `made` in place of those of the same tables; then put
    it at `target`."""
    _check_name(open_bundle(root, role="edge" if _has_edge(root) else "cloud"), wish)
    new = sorted(names_below(made))
    manifest = read_manifest(root / MANIFEST_NAME)
    old = [name for name in manifest.files if _belongs(name, wish.name, new)]
    for name in sorted(names_below(root)):
        if name not in old and name not in new:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            _place(root / name, copy / name, linked=target == root)
    for name in new:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        with (made / name).open("rb") as stream:
            os.fsync(stream.fileno())
        os.rename(made / name, copy / name)
    record_files(copy, new, without=old)
    publish(copy, target)


def _belongs(file: str, name: str, new: Sequence[str]) -> bool:
    """Whether a listed file is of the tables that are made: also one that was not made anew."""
    folder = tables_folder(name)
    splits = {path for path in new if path.endswith(".tables")}
    certificates = {path.removesuffix(".tables") + ".quality.json" for path in splits}
    return file in (*new, *certificates) or (folder != "codec" and file.startswith(f"{folder}/"))


def _place(file: Path, to: Path, *, linked: bool) -> None:
    """The same file at another place: linked, or copied for another bundle and where no links are.

    Links in a bundle stay links.
    """
    if linked:
        try:
            os.link(file, to, follow_symlinks=False)
            return
        except OSError:
            pass
    shutil.copy2(file, to, follow_symlinks=False)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
