"""The front on the device: ONNX Runtime, one KV buffer that past and present share.

A step binds the input tokens and two integers; weights and cache stay bound. The cache is allocated
once for the plan's longest sequence, so rolling back changes one number.
"""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge.device.mapped_pages import MappedFiles, release_read_only_pages
from edge.errors import FrontError, InputError
from edge.text_input import utf8_path
from hwprofiles.cpus import usable_cpus
from hwprofiles.heap import trim_heap
from optimizer.artifacts.bundle import FRONT_NAME
from optimizer.artifacts.plan import Plan

# The first version with all that fronts are made of: earlier ones lack inputs of the experts' node.
OLDEST_ONNXRUNTIME: Final = (1, 31)
RELEASE_ROWS: Final = 8  # a low-memory engine gives pages back after so many
KV_DTYPES: Final[dict[int, Any]] = {8: np.int8, 16: np.float16, 32: np.float32}


class FrontEngine:
    """The embedding and the first layers of one model, with the cache of one sequence.

    One generation at a time; engines that share a session may run in different threads.
    """

    def __init__(
        self, session: ort.InferenceSession, plan: Plan, mapped: MappedFiles | None = None
    ) -> None:
        self._session = session
        self._mapped = mapped
        self._rows_mapped = 0  # since their pages were last given back
        self._plan = plan
        self._num_tokens = 0
        self._whole = plan.edge_is_whole
        self._binding = session.io_binding()
        self._has_cache = plan.partition.split > 0
        self._output = session.get_outputs()[0].name
        geometry = plan.model.geometry
        self._vocab_size = geometry.vocab_size
        self._width = geometry.vocab_size if self._whole else geometry.hidden_size
        self._cache: list[ort.OrtValue] = []
        if self._has_cache:
            self._bind_cache()

    @classmethod
    def load(
        cls,
        edge_dir: Path,
        *,
        plan: Plan,
        count: int = 1,
        threads: int | None = None,
        spinning: bool = False,
        low_memory: bool = False,
        mapped: tuple[Path, ...] = (),
    ) -> list[FrontEngine]:
        """Load `front.onnx` once, for `count` engines that share weights and have own caches.

        threads: of the kernels (None: one for each CPU that may be used). spinning: threads that
        wait for work within a step spin instead of sleeping, which is faster; between steps they
        sleep in any case. low_memory: keep no memory for later that a step can get again, and
        give file pages back after some rows (`edge.device.mapped_pages`): those of the weights and
        of the other files that are `mapped`. FrontError when the file is not a front.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or usable_cpus()
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = not low_memory
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            session = ort.InferenceSession(
                utf8_path(edge_dir / FRONT_NAME), options, providers=["CPUExecutionProvider"]
            )
            pages = None
            if low_memory:  # the kernels have packed what they need; loading leaves holes
                pages = MappedFiles(edge_dir / f"{FRONT_NAME}.data", *mapped)
                pages.release()
                gc.collect()
                trim_heap()
                release_read_only_pages()
            return [cls(session, plan, pages) for _ in range(count)]
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
            reason = _too_old() or str(error)
            raise FrontError(f"{edge_dir / FRONT_NAME}: cannot be loaded ({reason})") from error

    def sibling(self) -> FrontEngine:
        """Another engine with the same weights and an empty cache of its own."""
        return FrontEngine(self._session, self._plan, self._mapped)

    @property
    def num_tokens(self) -> int:
        """Tokens in the cache."""
        return self._num_tokens

    @property
    def kv_bytes(self) -> int:
        """Bytes of the preallocated cache."""
        return self._plan.front_kv_bytes()

    def forward(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Append [T] tokens; returns their residual-stream rows, float32 [T, D].

        When the plan puts the whole model here: the logits after the last token, [1, V].
        InputError for an unknown token or when the plan's max tokens would be exceeded;
        FrontError when a kernel fails. The cache stays as it was then.
        """
        num_rows = len(token_ids)
        total = self._num_tokens + num_rows
        if not num_rows or token_ids.min() < 0 or token_ids.max() >= self._vocab_size:
            raise InputError(f"token ids must lie between 0 and {self._vocab_size - 1}")
        if total > self._plan.max_tokens:
            raise InputError(f"{total} tokens exceed the plan's {self._plan.max_tokens}")
        # Named, so that the memory that is bound lives until the kernels have run.
        inputs: dict[str, npt.NDArray[Any]] = {"input_ids": token_ids[None, :]}
        if self._has_cache:
            inputs["seqlens_k"] = np.array([total - 1], dtype=np.int32)
            inputs["total_sequence_length"] = np.array(total, dtype=np.int32)
        binding = self._binding
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        out_rows = 1 if self._whole else num_rows
        rows: npt.NDArray[np.float32] = np.empty((1, out_rows, self._width), dtype=np.float32)
        binding.bind_output(self._output, "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime raises many kinds, none of them exported
            raise FrontError(f"the front's kernels failed ({error})") from error
        self._num_tokens = total
        self._release_pages(num_rows)
        appended: npt.NDArray[np.float32] = rows[0]
        return appended

    def rollback(self, num_tokens: int) -> None:
        """Forget every token from `num_tokens` on; what was cached for them is overwritten."""
        if not 0 <= num_tokens <= self._num_tokens:
            raise InputError(f"cannot roll back to {num_tokens} of {self._num_tokens} tokens")
        self._num_tokens = num_tokens

    def reset(self) -> None:
        """Forget everything: the next tokens begin a sequence."""
        self._num_tokens = 0

    def _release_pages(self, num_rows: int) -> None:
        self._rows_mapped += num_rows
        if self._mapped is not None and self._rows_mapped >= RELEASE_ROWS:
            self._mapped.release()
            self._rows_mapped = 0

    def _bind_cache(self) -> None:
        """Bind one buffer for each layer's K and V, as past and as present."""
        geometry = self._plan.model.geometry
        shape = (1, geometry.num_kv_heads, self._plan.max_tokens, geometry.device_head_dim)
        names = [name.name for name in self._session.get_inputs()]
        for name in names:
            if not name.startswith("past_key_values."):
                continue
            buffer = ort.OrtValue.ortvalue_from_numpy(
                np.zeros(shape, dtype=KV_DTYPES[self._plan.kv_bits])
            )
            self._cache.append(buffer)
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)


def _too_old() -> str:
    """What to say of an ONNX Runtime that cannot run every front; empty for one that can."""
    version = tuple(int(part) for part in re.findall(r"\d+", ort.__version__)[:2])
    if version >= OLDEST_ONNXRUNTIME:
        return ""
    needed = ".".join(str(part) for part in OLDEST_ONNXRUNTIME)
    return f"onnxruntime {ort.__version__} is older than {needed}; pip install -U onnxruntime"
