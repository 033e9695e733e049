"""Passes over text windows, layer after layer: states at splits, gradients there, and the rest.

Each pass loads every layer once. Where layers stay loaded, a pass takes a few windows at a time
through all of them, so that little is kept in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from codec.arrays import F32, I64
from optimizer.export.layers.layered_model import LayeredModel
from optimizer.export.layers.rows_on_disk import HiddenRows, copy_rows
from optimizer.export.layers.skeleton import called

Progress = Callable[[str, int, int], None]  # what is being done, done, of how many

_TOKENS_AT_ONCE = 1024
_BLOCK = 256  # tokens of a vocabulary that are summed first when one is drawn


def states_at(
    model: LayeredModel, splits: Sequence[int], windows: I64, progress: Progress
) -> dict[int, HiddenRows]:
    """Hidden states at each split of windows [N, W]: rows [N, W, D]."""
    for split in splits:
        model.check_split(split)
    count, window = windows.shape
    found = {split: model.new_rows(count, window) for split in splits}
    counter = _Counter("reading hidden states", _groups(model, count), max(splits), progress)
    embed = model.embedder(torch.from_numpy(windows))
    for begin, end in counter.groups:
        rows = model.new_rows(end - begin, window)
        for at, ids in enumerate(windows[begin:end]):
            rows.write(at, embed(torch.from_numpy(ids)[None]))
        for layer in range(max(splits) + 1):
            if layer in found:
                copy_rows(rows, found[layer], begin)
            if layer < max(splits):
                model.advance(rows, range(layer, layer + 1))
                counter.count()
        rows.close()
    return found


def finish(
    model: LayeredModel, rows: HiddenRows, split: int, progress: Progress, *, what: str
) -> None:
    """Run the layers from `split` on over rows, in place. `model.logits` goes on from them."""
    counter = _Counter(what, _groups(model, len(rows)), model.num_layers - split, progress)
    for layer in range(split, model.num_layers):
        model.advance(rows, range(layer, layer + 1))
        counter.count(len(counter.groups))


def gradients_at(
    model: LayeredModel,
    splits: Sequence[int],
    entered: HiddenRows,
    generator: torch.Generator,
    progress: Progress,
) -> dict[int, HiddenRows]:
    """Gradients [N, W, D] at each split of log p(y) summed over positions, y drawn from p.

    entered: the windows' hidden states at the first of the splits. The second moment of such a
    gradient is the Fisher information: half its quadratic form is the KL that a small error costs
    (Amari 1998, doi 10.1162/089976698300017746).
    """
    count, window = entered.shape[:2]
    first, last = min(splits), model.num_layers
    found = {split: model.new_rows(count, window) for split in splits}
    counter = _Counter("reading gradients", _groups(model, count, 1), 2 * (last - first), progress)
    for begin, end in counter.groups:
        tape = _Tape(model, end - begin, window)
        rows = model.new_rows(end - begin, window)
        copy_rows(entered, rows, 0, begin, end)
        for layer in range(first, last):
            tape.forward(layer, rows)
            counter.count()
        slopes = _score_slopes(model, rows, generator)
        for layer in reversed(range(first, last)):
            if layer + 1 in found:
                copy_rows(slopes, found[layer + 1], begin)
            tape.backward(layer, slopes)
            counter.count()
        copy_rows(slopes, found[first], begin)
        rows.close()
        slopes.close()
    model.drop_head()
    return found


def states_after(
    model: LayeredModel, splits: Sequence[int], listed: I64, first: int, progress: Progress
) -> dict[int, F32]:
    """By split, hidden state [V', D] of each listed token right after one common token, `first`.

    Not at position 0: the first position is an attention sink and looks like nothing else. The
    common token is computed once; its keys and values are shared.
    """
    found: dict[int, F32] = {}
    name, calls = model.cache_name, model.calls_after_first()
    ids = torch.from_numpy(listed)
    embed = model.embedder(torch.cat([ids, torch.tensor([first])]))
    before = embed(torch.tensor([[first]]))
    rows = torch.cat([embed(part[:, None]) for part in ids.split(1 << 12)])
    for layer in range(max(splits) + 1):
        if layer in splits:
            found[layer] = rows[:, 0].numpy().copy()
        if layer == max(splits):
            break
        begun = DynamicCache(config=model.config)
        args, kwargs = calls[layer]
        own_args, own_kwargs = model.calls(1)[layer]
        with model.layer(layer) as module, torch.no_grad():
            start = before.to(model.device)
            begun_kwargs = {**own_kwargs, name: begun, "use_cache": True}
            before = called(module, start, own_args, begun_kwargs).cpu()
            for begin in range(0, len(rows), _TOKENS_AT_ONCE):
                part = rows[begin : begin + _TOKENS_AT_ONCE].to(model.device)
                cache = DynamicCache(config=model.config)
                keys, values = _held(begun, layer)
                cache.update(
                    keys.expand(len(part), -1, -1, -1), values.expand(len(part), -1, -1, -1), layer
                )
                out = called(module, part, args, {**kwargs, name: cache})
                rows[begin : begin + len(part)] = out.cpu()
        progress("reading tokens alone", layer + 1, max(splits))
    return found


class _Tape:
    """A forward pass that can be followed backwards: each layer's input, or its graph as well.

    Where layers are loaded anew for the way back, the input is stored in 16 bits and the layer is
    computed again from it. So it is, from float32, where a graph in float32 would need as much
    memory as the layers.
    """

    def __init__(self, model: LayeredModel, count: int, window: int) -> None:
        self._model = model
        self._shape = (count, window)
        self._inputs: dict[int, HiddenRows] = {}
        self._graphs: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def forward(self, layer: int, rows: HiddenRows) -> None:
        """Run a layer over the rows, in place."""
        if self._model.keeps_graphs:
            self._graphs[layer] = [self._through(layer, rows, at) for at in range(len(rows))]
            for at, (_, out) in enumerate(self._graphs[layer]):
                rows.write(at, out)
            return
        stored = self._model.new_rows(*self._shape, dtype=torch.bfloat16)
        copy_rows(rows, stored, 0)
        self._inputs[layer] = stored
        self._model.advance(rows, range(layer, layer + 1))

    def backward(self, layer: int, slopes: HiddenRows) -> None:
        """Turn gradients at the layer's output into those at its input, in place."""
        with self._model.layer(layer):
            for at in range(len(slopes)):
                if layer in self._graphs:
                    entered, out = self._graphs[layer][at]
                else:
                    entered, out = self._through(layer, self._inputs[layer], at)
                slope = slopes.read(at, at + 1).to(out.device)
                slopes.write(at, torch.autograd.grad(out, entered, slope)[0])
        self._graphs.pop(layer, None)
        if layer in self._inputs:
            self._inputs.pop(layer).close()

    def _through(self, layer: int, rows: HiddenRows, at: int) -> tuple[Tensor, Tensor]:
        entered = rows.read(at, at + 1).to(self._model.device).requires_grad_(True)
        with self._model.layer(layer) as module, torch.enable_grad():
            return entered, self._model.run_layer(module, layer, entered)


def _score_slopes(model: LayeredModel, rows: HiddenRows, generator: torch.Generator) -> HiddenRows:
    """Gradients of log p(y) at what the last layer gave, y drawn from p."""
    slopes = model.new_rows(*rows.shape[:2])
    for at in range(len(rows)):
        entered = rows.read(at, at + 1)[0]
        parts = []
        for begin, end in model.logit_pieces(len(entered)):
            part = entered[begin:end].to(model.device).requires_grad_(True)
            with torch.enable_grad():
                logits = model.logits(part)
            # d log p(y) / d logits = e_y - p, made in the room of the logits.
            slope = exp_shifted_(logits.detach())
            drawn = drawn_tokens(slope, generator)
            slope.div_(slope.sum(-1, keepdim=True).neg_())
            slope.scatter_add_(1, drawn, torch.ones_like(slope[:, :1]))
            parts.append(torch.autograd.grad(logits, part, slope)[0].cpu())
        slopes.write(at, torch.cat(parts)[None])
    return slopes


def exp_shifted_(logits: Tensor) -> Tensor:
    """exp(logits - their row's largest), in place: probabilities up to a factor for each row."""
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()


def drawn_tokens(weights: Tensor, generator: torch.Generator) -> Tensor:
    """One token [T, 1] of each row of weights [T, V], which need not sum to one.

    First a block of the vocabulary is drawn, then a token of it: a running sum of all of it would
    take longer than the logits.
    """
    count = weights.shape[-1]
    blocks = -(-count // _BLOCK)
    even = count // _BLOCK * _BLOCK
    sums = weights.new_zeros(len(weights), blocks)
    torch.sum(weights[:, :even].unflatten(1, (-1, _BLOCK)), -1, out=sums[:, : even // _BLOCK])
    if even < count:
        sums[:, -1] = weights[:, even:].sum(-1)
    uniform = torch.rand(len(weights), 1, generator=generator).to(weights.device)
    block, left = _drawn(sums, uniform)
    inside = block * _BLOCK + torch.arange(_BLOCK, device=weights.device)
    known = weights.gather(1, inside.clamp(max=count - 1)).masked_fill_(inside >= count, 0)
    token, _ = _drawn(known, left)
    return block * _BLOCK + token


def _drawn(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The place [T, 1] where a running sum passes the share `uniform` [T, 1] of the whole, and the
    share of that place's own weight that is left to pass: in [0, 1), never a place of weight 0."""
    until = weights.cumsum(-1)
    aim = uniform * until[:, -1:]
    last = weights.shape[-1] - (weights > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True) - 1
    place = torch.minimum(torch.searchsorted(until, aim, right=True), last)
    own = weights.gather(1, place)
    left = (aim - until.gather(1, place) + own) / own
    return place, left.clamp_(0, 1 - 2**-24)


class _Counter:
    """Layers of groups of windows, told as they are done."""

    def __init__(
        self, what: str, groups: list[tuple[int, int]], layers: int, progress: Progress
    ) -> None:
        self.groups = groups
        self._what = what
        self._total = max(1, layers * len(groups))
        self._done = 0
        self._progress = progress

    def count(self, layers: int = 1) -> None:
        self._done += layers
        self._progress(self._what, self._done, self._total)


def _groups(model: LayeredModel, count: int, kept: int = 4) -> list[tuple[int, int]]:
    """Windows that go through all layers together: `kept` where layers stay, else all."""
    size = kept if model.keeps else count
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _held(cache: DynamicCache, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values of one layer, [1, G, T, d] each."""
    held: Any = cache.layers[layer]
    return held.keys, held.values
