"""Whether two bundles of one model have the same back, as far as both have its layers.

An Open names the model, not the bundle. Where the backs of two bundles differ, a server with both
could give an edge the tokens of the other one, so it does not start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from cloud.engine.tensor_files import TensorFiles
from cloud.errors import StartError
from optimizer.artifacts.bundle import Bundle
from optimizer.artifacts.weight_reference import REFERENCE_NAME, WeightReference

_CONFIG: Final = "cloud/config.json"
_REFERENCE: Final = f"cloud/{REFERENCE_NAME}"


def check_same_backs(loaded: Bundle, other: Bundle) -> None:
    """StartError unless `loaded` has every tensor of `other`'s back, with the same values.

    Files with the same hash are not read. Others are, once: no layer is loaded twice. BundleError
    for a bundle that lists no such files.
    """
    if other is loaded:
        return
    reason = _difference(loaded, other)
    if reason:
        raise StartError(
            f"{other.root}: is of the same model as {loaded.root}, but {reason}; an edge names the "
            "model alone, so serve one of them at another address"
        )


def _difference(loaded: Bundle, other: Bundle) -> str:
    """What differs; empty: nothing."""
    bits = [one.plan.partition.back_bits for one in (other, loaded)]
    if bits[0] != bits[1]:
        return f"its back has {bits[0]} bits and not {bits[1]}"
    if loaded.plan.model.geometry != other.plan.model.geometry:
        return "the plans differ in the model's shape"
    for one in (loaded, other):
        one.path(_CONFIG)  # BundleError where the manifest lists none
    if loaded.files[_CONFIG].sha256 != other.files[_CONFIG].sha256:
        return f"{_CONFIG} differs"
    if loaded.has(_REFERENCE) != other.has(_REFERENCE):
        return "one holds its weights and the other refers to them (build both alike)"
    if loaded.has(_REFERENCE):
        return _referenced(loaded.path(_REFERENCE), other.path(_REFERENCE))
    return _stored(loaded, other)


def _referenced(loaded: Path, other: Path) -> str:
    ours, theirs = WeightReference.load(loaded), WeightReference.load(other)
    for name, (file, stored) in theirs.tensors.items():
        place = ours.tensors.get(name)
        if place is None or place[1] != stored:
            return f"it has {name} from elsewhere"
        if ours.files[place[0]].sha256 != theirs.files[file].sha256:
            return f"it has {name} from another file"
    return ""


def _stored(loaded: Bundle, other: Bundle) -> str:
    ours, theirs = (
        {one.files[path.relative_to(one.root).as_posix()].sha256: path for path in _files(one)}
        for one in (loaded, other)
    )
    unlike = [path for sha256, path in theirs.items() if sha256 not in ours]
    if not unlike:
        return ""
    cpu = torch.device("cpu")
    have = TensorFiles(loaded.root, list(ours.values()), cpu)
    want = TensorFiles(other.root, unlike, cpu)
    for name in want:
        if name not in have:
            return f"it has the tensor {name}"
        if not _is_same(have[name], want[name]):
            return f"the weights {name} differ"
    return ""


def _files(bundle: Bundle) -> tuple[Path, ...]:
    return bundle.paths("cloud", ".safetensors")


def _is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Bit for bit: NaN equals itself."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not first.dim():
        first, second = first[None], second[None]
    views = (one.contiguous().view(torch.uint8) for one in (first, second))
    return torch.equal(*views)
