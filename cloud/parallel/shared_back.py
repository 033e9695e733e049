"""One rank's share of a back, read from the same files as a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from cloud.engine.back_weights import BackFiles, model_skeleton
from cloud.engine.tensor_files import CODES_SUFFIX, SCALE_SUFFIX, TensorCut
from cloud.parallel.group import AddedModule, GatheredHead, GroupSwitch, RankGroup
from cloud.parallel.shares import divide
from optimizer.export.sources.tensor_names import HEAD_NAME


class SharedBackFiles(BackFiles):
    """A back's files, of which this rank reads its share.

    `whole_config`: of the undivided model. `switch`: to be turned on once every rank has its
    engine. Arguments and errors beside `group` are those of `load_back`.
    """

    def __init__(self, folder: Path, *, group: RankGroup, **arguments: Any) -> None:
        super().__init__(folder, **arguments)
        self.whole_config = self._config
        self.switch = GroupSwitch(group)
        shares = divide(self._config, self._skeleton, folder, rank=group.rank, size=group.size)
        self._shares = shares
        self._widths = [end - begin for begin, end in shares.head_rows]
        whole = self._skeleton.get_output_embeddings()
        self._take(model_skeleton(folder, shares.config, self._dtype))
        self._skeleton.set_output_embeddings(_part_of(whole, self._widths[group.rank]))
        cut = TensorCut(0, (shares.head_rows[group.rank],), self._config.vocab_size)
        bias = HEAD_NAME.removesuffix("weight") + "bias"
        head = (HEAD_NAME, HEAD_NAME + CODES_SUFFIX, HEAD_NAME + SCALE_SUFFIX, bias)
        self._tensors.cuts = {**shares.cuts, **dict.fromkeys(head, cut)}

    def layer(self, index: int) -> nn.Module:
        """Layer `index` of this rank; results of its divided inputs are added over the group."""
        module = super().layer(index)
        prefix = f"{self._prefix}.layers.{index}."
        for name in self._shares.added:
            if name.startswith(prefix):
                parent, _, attribute = name.removeprefix(prefix).rpartition(".")
                owner = module.get_submodule(parent)
                setattr(owner, attribute, AddedModule(getattr(owner, attribute), self.switch))
        return module

    def head(self) -> nn.Module:
        """This rank's rows of the head."""
        return GatheredHead(super().head(), self.switch, self._widths)


def _part_of(head: nn.Linear, num_rows: int) -> nn.Linear:
    """A head of `num_rows` rows, without weights."""
    has_bias = head.bias is not None
    return nn.Linear(
        head.in_features, num_rows, bias=has_bias, device="meta", dtype=head.weight.dtype
    )
