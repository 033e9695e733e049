"""A model whose decoder layers are loaded one at a time, run over all rows, and dropped.

transformers' own modules do all of the arithmetic. The model is made without values (the meta
device). Its forward pass is run once with layers that only note what they are called with: masks,
rotary tables and positions. A layer that is loaded is then called with the same, on rows that lie
in memory or in a file. The embedding and the head go through the model's own forward pass too, so
factors and soft caps of a family need no line here.

Where all layers fit comfortably (`WHOLE_BYTES`), they stay loaded. Nothing else is different then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from hwprofiles.heap import trim_heap
from optimizer.cost.build_memory import WHOLE_BYTES
from optimizer.errors import BuildError, ModelError
from optimizer.export.calibration.hidden_states import cache_argument, final_norm
from optimizer.export.layers.fast_linear import Head, has_fast_bfloat16, quicken
from optimizer.export.layers.rows_on_disk import HiddenRows
from optimizer.export.layers.skeleton import called, skeleton_of
from optimizer.export.layers.tensor_source import TensorSource
from optimizer.export.sources.tensor_names import EMBEDDING_NAME, HEAD_NAME

# Room for the logits of one piece of rows.
_PIECE_BYTES: Final = 30 << 20
# A layer's other arguments, as the decoder calls it.
Call = tuple[tuple[Any, ...], dict[str, Any]]
Step = Callable[[int, int], None]  # pieces done, of how many


class LayeredModel:
    """See the module. Rows are float32 on the CPU; layers compute on `device`.

    folder: where rows between layers lie while layers are streamed (None: in memory). keep: whether
    layers stay loaded (None: where they fit comfortably). attention: transformers' name of an
    implementation, None: the one that transformers chooses for the model.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        folder: Path | None,
        keep: bool | None = None,
        device: str = "cpu",
        attention: str | None = None,
    ) -> None:
        self.source = source
        self.device = torch.device(device)
        self.skeleton = skeleton_of(source, attention)
        self.config = self.skeleton.config
        self._decoder: Any = self.skeleton.get_decoder()
        if not isinstance(getattr(self._decoder, "layers", None), nn.ModuleList):
            raise BuildError(f"{type(self.skeleton).__name__}: no decoder layers to calibrate at")
        values = sum(value.numel() for value in self._decoder.layers.parameters())
        self.keeps = 4 * values <= WHOLE_BYTES if keep is None else keep
        self._fast = False
        self._attention = attention
        self._folder = None if self.keeps else folder
        names = {id(module): name for name, module in self.skeleton.named_modules()}
        self._prefix = names[id(self._decoder)]
        self._head_name = names[id(self.skeleton.get_output_embeddings())]
        self._loaded: dict[int, nn.Module] = {}
        self._open: dict[int, nn.Module] = {}  # in use by a block of `layer`
        self._calls_of: dict[int, list[Call]] = {}
        self._has_head = False
        self._norm: Any = final_norm(self.skeleton)
        self._norm_name = names[id(self._norm)]
        self._fill(self._norm, self._norm_name)
        self._decoder.rotary_emb.to(self.device)

    @property
    def keeps_graphs(self) -> bool:
        """Whether there is room for the graph of every layer too: where all of it is 16 bits."""
        return self.keeps and self._fast

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, as the embedding has it."""
        return int(self.skeleton.get_input_embeddings().weight.shape[0])

    def check_split(self, split: int) -> None:
        """Raises BuildError for a split that the model does not have."""
        if not 0 <= split <= self.num_layers:
            raise BuildError(f"split {split} of a model with {self.num_layers} layers")

    def new_rows(
        self, num_windows: int, window: int, *, dtype: torch.dtype = torch.float32
    ) -> HiddenRows:
        """Room for rows [num_windows, window, D], on disk while layers are streamed.

        dtype: of the stored values where they are on disk.
        """
        kind = torch.float32 if self._folder is None else dtype
        return HiddenRows((num_windows, window, self.hidden_size), self._folder, dtype=kind)

    def embedder(self, token_ids: Tensor) -> Callable[[Tensor], Tensor]:
        """A function from token ids [B, T] to what enters layer 0, float32 [B, T, D].

        It knows the ids that occur in `token_ids`, and holds no more of the embedding than these.
        """
        known = token_ids.unique()
        table = self.source.read(EMBEDDING_NAME)[known]
        module = copy.deepcopy(self._decoder.embed_tokens)
        module.num_embeddings, module.padding_idx = len(known), None

        def embedded(ids: Tensor) -> Tensor:
            part, where = torch.searchsorted(known, ids).unique(return_inverse=True)
            module.weight = nn.Parameter(table[part].to(torch.float32), requires_grad=False)
            with torch.no_grad():
                # The decoder may have a factor of its own.
                return self._called_with(module(where), {})[0].cpu()

        return embedded

    @contextmanager
    def in_bfloat16(self) -> Iterator[None]:
        """While open, layers multiply in bfloat16 (`fast_linear`) where that is faster."""
        if not has_fast_bfloat16(self.device.type):
            yield
            return
        exact = self._loaded
        self._loaded, self._fast = {}, True
        self._free_head()
        try:
            yield
        finally:
            self._loaded, self._fast = exact, False
            self._free_head()

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """Layer `index` with its weights, for the time of the block. Blocks inside share it."""
        module = self._open.get(index) or self._loaded.get(index)
        if module is not None:
            yield module
            return
        module = copy.deepcopy(self._decoder.layers[index])
        if self._fast:
            quicken(module)
        self._fill(module, f"{self._prefix}.layers.{index}")
        if self.keeps:
            self._loaded[index] = module
        self._open[index] = module
        try:
            yield module
        finally:
            del self._open[index]

    def run_layer(self, module: nn.Module, index: int, rows: Tensor) -> Tensor:
        """Layer `index`, loaded, on rows [B, T, D] from position 0; gradients as torch is set."""
        args, kwargs = self.calls(rows.shape[1])[index]
        return called(module, rows.to(self.device), args, kwargs)

    def advance(self, rows: HiddenRows, layers: range, step: Step | None = None) -> None:
        """Run consecutive layers over all rows, in place; a window at a time, which fits caches."""
        pieces = list(rows.pieces(1))
        for done, index in enumerate(layers):
            with self.layer(index) as module, torch.no_grad():
                for begin, end in pieces:
                    rows.write(begin, self.run_layer(module, index, rows.read(begin, end)))
            if step is not None:
                step(done + 1, len(layers))

    def states_of(self, token_ids: Tensor, num_layers: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each of the first layers: its number, and rows [B, T, D] that enter and that leave it.

        token_ids: int64 [B, T]. No layer's weights are in memory while the caller has its rows,
        unless layers stay loaded.
        """
        rows = self.embedder(token_ids)(token_ids)
        for index in range(num_layers):
            with self.layer(index) as module, torch.no_grad():
                left = self.run_layer(module, index, rows).cpu()
            del module
            yield index, rows, left
            rows = left

    def calls(self, length: int) -> list[Call]:
        """What each layer is called with for `length` rows from position 0."""
        if length not in self._calls_of:
            rows = torch.zeros(1, length, self.hidden_size, device=self.device)
            self._calls_of[length] = self._called_with(rows, {})[1]
        return self._calls_of[length]

    def calls_after_first(self) -> list[Call]:
        """What each layer is called with for one row at position 1.

        Each call names a cache of its own making (`cache_name`), to be replaced by the layer's.
        """
        cache = DynamicCache(config=self.config)
        config = self.config
        head_dim = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        blank = torch.zeros(1, config.num_key_value_heads, 1, head_dim, device=self.device)
        for index in range(self.num_layers):
            cache.update(blank, blank, index)
        row = torch.zeros(1, 1, self.hidden_size, device=self.device)
        where = torch.ones(1, 1, dtype=torch.long, device=self.device)
        return self._called_with(row, {self.cache_name: cache, "position_ids": where})[1]

    @property
    def cache_name(self) -> str:
        """What the KV cache is called in the forward call of this version of transformers."""
        return cache_argument(self._decoder)

    def normed(self, rows: Tensor) -> Tensor:
        """What the final norm gives of rows [T, D] after the last layer, on the CPU."""
        with torch.no_grad():
            found: Tensor = self._norm(rows.to(self.device))
        return found.cpu()

    def logits(self, rows: Tensor, *, exact: bool = False) -> Tensor:
        """Logits float32 [T, V] of rows [T, D] that the last layer gave.

        exact: in float32, whatever the layers multiply in.
        """
        if not self._has_head:
            self._load_head()
        head: Any = self.skeleton.get_submodule(self._head_name)
        head.kind = torch.float32 if exact else self._kind
        layers = list(self._decoder.layers)
        with ExitStack() as put_back:
            for module in layers:
                module.forward = lambda hidden, *args, **kwargs: hidden
                put_back.callback(module.__dict__.pop, "forward")
            layers[-1].forward = lambda hidden, *args, **kwargs: rows[None].to(self.device)
            blank = torch.zeros(1, len(rows), self.hidden_size, device=self.device)
            found: Tensor = self.skeleton(inputs_embeds=blank, use_cache=False).logits
        return found[0].float()

    def logit_pieces(self, count: int) -> list[tuple[int, int]]:
        """(begin, end) of pieces of `count` rows whose logits are small for any vocabulary."""
        size = max(16, _PIECE_BYTES // (4 * self.vocab_size))
        return [(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def whole(self) -> Any:
        """The transformers model with all of its weights, in the type that layers compute in.

        It shares layers and head with this one, and is not kept here.

        Raises BuildError where layers are streamed: it would take more room than there is.
        """
        if not self.keeps:
            raise BuildError("this model is too large to be in memory as a whole")
        if not self._has_head:
            self._load_head()
        layers = []
        for index in range(self.num_layers):
            with self.layer(index) as module:
                layers.append(module)
        whole = skeleton_of(self.source, self._attention)
        decoder = whole.get_decoder()
        decoder.layers = nn.ModuleList(layers)
        whole.set_submodule(self._norm_name, self._norm)
        decoder.rotary_emb = self._decoder.rotary_emb
        table = self.source.read(EMBEDDING_NAME).to(self.device, torch.float32)
        decoder.embed_tokens.weight = nn.Parameter(table, requires_grad=False)
        whole.set_submodule(self._head_name, self.skeleton.get_submodule(self._head_name))
        if (self.source.place / "generation_config.json").is_file():
            whole.generation_config = GenerationConfig.from_pretrained(self.source.place)
        return whole

    def drop_head(self) -> None:
        """Free the head until it is needed again (where layers are kept, it stays)."""
        if not self.keeps:
            self._free_head()

    def _free_head(self) -> None:
        self._has_head = False
        self.skeleton.set_submodule(self._head_name, nn.Module())

    def release(self, *, but_first: int = 0) -> None:
        """Free the head and all but the first layers; what is needed again is read again."""
        self._loaded = {at: module for at, module in self._loaded.items() if at < but_first}
        self._free_head()
        trim_heap()

    def _called_with(self, rows: Tensor, extra: dict[str, Any]) -> tuple[Tensor, list[Call]]:
        """The rows that enter layer 0, and what each layer is called with beside its rows."""
        calls: list[Call] = []
        entered: list[Tensor] = []

        def noted(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            entered.append(hidden_states)
            calls.append((args, kwargs))
            return hidden_states

        with ExitStack() as put_back, torch.no_grad():
            for module in (*self._decoder.layers, self._norm):
                put_back.callback(module.__dict__.pop, "forward")
                module.forward = noted if module is not self._norm else _unchanged
            self._decoder(inputs_embeds=rows.to(self.device), **{"use_cache": bool(extra), **extra})
        return entered[0], calls

    @property
    def _kind(self) -> torch.dtype:
        return torch.bfloat16 if self._fast else torch.float32

    def _load_head(self) -> None:
        """The head as it is stored, so that a large one is not held twice; a small one in the type
        that it computes in, which saves every product a conversion."""
        names = self.source.tensor_names
        weight = self.source.read(HEAD_NAME if HEAD_NAME in names else EMBEDDING_NAME)
        if self.keeps:
            weight = weight.to(self._kind)
        bias = f"{self._head_name}.bias"
        head = Head(weight, self.source.read(bias) if bias in names else None, self._kind)
        self.skeleton.set_submodule(self._head_name, head.to(self.device))
        self._has_head = True

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Give a module without values its weights, in the types of its parameters."""
        for name, parameter in list(module.named_parameters()):
            value = self.source.read(f"{prefix}.{name}").to(self.device, parameter.dtype)
            parent, _, attribute = name.rpartition(".")
            owner = module.get_submodule(parent)
            setattr(owner, attribute, nn.Parameter(value, requires_grad=False))
        blank = [name for name, buffer in module.named_buffers() if buffer.is_meta]
        if blank:
            raise ModelError(f"{prefix}: transformers makes no value for {', '.join(blank)}")
        module.eval()


def _unchanged(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden
