"""The tables file of a ladder: written by the build, read by both sides without torch.

Layout: b"SPCODEC2"; length of the header (uint32 LE); header, JSON; arrays, little-endian, each at
its offset from the end of the header. The header names the levels and lists the arrays with dtype
and shape. The SHA-256 of the whole file is what both sides must agree on. The file is
mapped, so the token predictions (a byte per token and channel) cost memory only where used.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codec.entropy.integers import Families
from codec.errors import TablesError
from codec.frame import MAX_LEVELS
from codec.ladder import Ladder, Level, LosslessCodec
from codec.levels.calibrated import CalibratedCodec, SplitModel, trellis_models
from codec.levels.tabq import TabqCodec
from codec.rows import RowCodec

_MAGIC = b"SPCODEC2"
_EARLIER = b"SPCODEC1"
_MAX_HEADER_BYTES = 1 << 20
_MAX_FILE_BYTES = 4 << 30
_DTYPES = {"<f4": np.float32, "<u2": np.uint16, "|u1": np.uint8, "|i1": np.int8, "<i4": np.int32}
_MODEL_FIELDS = (
    "mean",
    "tau",
    "sigma",
    "forward",
    "inverse",
    "order",
    "token_ids",
    "token_codes",
    "token_scale",
    "sensitivity",
)

Arrays = dict[str, npt.NDArray[Any]]


def write_tables(path: Path, header: dict[str, Any], arrays: Arrays) -> str:
    """Write the file; `header` gets its "arrays" key here. Returns the SHA-256 in hex."""
    listing, blobs, at = {}, [], 0
    for name, array in arrays.items():
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        if little.dtype.str not in _DTYPES:
            raise TablesError(f"array {name} of dtype {array.dtype} has no place in a tables file")
        listing[name] = {"dtype": little.dtype.str, "shape": list(array.shape), "offset": at}
        blobs.append(little.tobytes())
        at += len(blobs[-1])
    text = json.dumps({**header, "arrays": listing}, sort_keys=True).encode()
    data = b"".join((_MAGIC, len(text).to_bytes(4, "little"), text, *blobs))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read_tables(path: Path) -> tuple[dict[str, Any], Arrays, str]:
    """Header, arrays and SHA-256 of a tables file. Raises TablesError."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise TablesError(f"{path}: larger than any codec tables file")
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise TablesError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise TablesError(f"{path}: not a codec tables file") from error
    data = mapped.data
    if bytes(data[:8]) == _EARLIER:
        raise TablesError(f"{path}: tables of an earlier format; run 'splitpoint build' again")
    if len(data) < 12 or data[:8] != _MAGIC:
        raise TablesError(f"{path}: not a codec tables file")
    size = int.from_bytes(data[8:12], "little")
    if size > min(_MAX_HEADER_BYTES, len(data) - 12):
        raise TablesError(f"{path}: header of {size} bytes does not fit")
    try:
        header = json.loads(bytes(data[12 : 12 + size]))
        body = data[12 + size :]
        arrays = {str(name): _array(body, entry) for name, entry in header["arrays"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TablesError(f"{path}: damaged header: {error}") from error
    return header, arrays, _sha256_of(path)


def _sha256_of(path: Path) -> str:
    """Read in blocks, not through the mapping, whose pages would all become resident."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _array(body: memoryview, entry: dict[str, Any]) -> npt.NDArray[Any]:
    dtype = _DTYPES[entry["dtype"]]
    shape = [int(n) for n in entry["shape"]]
    offset = int(entry["offset"])
    count = math.prod(shape)
    size = np.dtype(dtype).itemsize
    if min(shape, default=0) < 0 or offset < 0 or offset + count * size > len(body):
        raise ValueError("array outside the file")
    raw = np.frombuffer(body, np.dtype(dtype).newbyteorder("<"), count=count, offset=offset)
    # Large byte tables stay in the file's pages; a session touches a row of them per token.
    array = (raw if count > 1 << 20 and dtype is np.int8 else raw.astype(dtype)).reshape(shape)
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise ValueError("array with NaN or infinity")
    return array


def load_ladder(path: Path, *, hidden_size: int) -> Ladder:
    """Read the ladder at `path`. Raises TablesError."""
    header, arrays, digest = read_tables(path)
    try:
        if header["hidden_size"] != hidden_size:
            raise TablesError(
                f"{path}: tables for hidden size {header['hidden_size']}, this is {hidden_size}"
            )
        model = None
        if "mean" in arrays:
            model = SplitModel(**{name: arrays[name] for name in _MODEL_FIELDS})
            model.check(hidden_size)
        levels = [Level(name="lossless", codec=LosslessCodec(hidden_size=hidden_size))]
        for entry in header["levels"]:
            codec = codec_of(entry, arrays, model, hidden_size)
            levels.append(Level(name=str(entry["name"]), codec=codec, extra=bool(entry["extra"])))
        safe_level = str(header["safe_level"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TablesError(f"{path}: damaged header: {error}") from error
    names = [level.name for level in levels]
    if len(levels) > MAX_LEVELS or len(set(names)) < len(names) or safe_level not in names:
        raise TablesError(f"{path}: level names {names} with safe level {safe_level!r}")
    return Ladder(
        hidden_size=hidden_size,
        levels=tuple(levels),
        tables_sha256=digest,
        safe_level=safe_level,
    )


def _of_width(array: npt.NDArray[Any], hidden_size: int) -> npt.NDArray[Any]:
    if array.shape != (hidden_size,):
        raise TablesError(f"an array of shape {list(array.shape)} for a width of {hidden_size}")
    return array


def codec_of(
    entry: dict[str, Any], arrays: Arrays, model: SplitModel | None, hidden_size: int
) -> RowCodec:
    """The coder of one level's header entry. Raises TablesError, KeyError or ValueError."""
    name = entry["name"]
    if entry["kind"] == "tabq":
        return TabqCodec(
            hidden_size=hidden_size,
            delta=float(entry["delta"]),
            top_k=int(entry["top_k"]),
            tau=_of_width(arrays[entry["tau"]], hidden_size) if entry["tau"] else None,
            min_bits=int(entry["min_bits"]),
            max_bits=int(entry["max_bits"]),
            families=Families.from_cdf(arrays[f"{name}.cdf"]) if entry["entropy"] else None,
            centre=_of_width(arrays[entry["centre"]], hidden_size) if entry["centre"] else None,
            eighths=_of_width(arrays[entry["eighths"]], hidden_size) if entry["eighths"] else None,
        )
    if entry["kind"] == "calibrated" and model is not None:
        models = trellis_models(arrays[f"{name}.cdf"], slope=float(entry["slope"]))
        return CalibratedCodec.build(model, float(entry["step"]), models, arrays[f"{name}.centres"])
    raise TablesError(f"level {name!r} of unknown kind {entry['kind']!r}")
