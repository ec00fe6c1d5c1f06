"""Runs a model on the native CPU library: a whole step is one call."""

import mmap
import weakref
from contextlib import suppress

import numpy as np
import psutil
import torch

from stafette.kvtransfer.memory import SharedMemory
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, OutOfMemory
from stafette.workers.models.spec import ModelSpec
from stafette.workers.native import library
from stafette.workers.native.library import Decoder, Team
from stafette.workers.native.structs import Element, StepDesc
from stafette.workers.runner.native_weights import NativeWeights, WeightPacker
from stafette.workers.runner.runner import KvLayout, Runner, StepInputs, StepTensors
from stafette.workers.runner.torch_threads import TorchThreads
from stafette.workers.weights.checkpoint import Checkpoint

_TILE_ROWS = 16  # a head must be whole tiles
_KV_ELEMENTS = {
    "float32": Element.FLOAT32,
    "bfloat16": Element.BFLOAT16,
    "float16": Element.FLOAT16,
}
_KV_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_FEW_ROWS = 8  # of logits; a first step seldom wants more


def why_not(config: EngineConfig, spec: ModelSpec) -> str | None:
    """Return None when the native runner can serve this model, else the reason why it cannot."""
    if reason := library.why_not():
        return reason
    if library.best_isa() == "scalar":
        return "without AVX2, torch is faster"
    if spec.moe is not None:
        return "mixtures of experts run on torch"
    if config.enable_lora:
        return "LoRA adapters run on torch"
    if config.tensor_parallel_size > 1:
        return "tensor parallel runs on torch"
    if config.dtype in ("float16", "float32"):
        return f"dtype {config.dtype} runs on torch"
    if config.kv_cache_dtype == "fp8":
        return "an fp8 KV cache runs on torch"
    if config.attention_backend not in ("auto", "cpu"):
        return f"attention_backend {config.attention_backend} runs on torch"
    if spec.head_dim % _TILE_ROWS:
        return f"head_dim {spec.head_dim} is no multiple of {_TILE_ROWS}"
    return None


class _Resources:
    """What the library holds and reads. Threads may read the pool after a step: it goes last."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.weights: NativeWeights | None = None
        self.decoder: Decoder | None = None
        self.pool: torch.Tensor | None = None
        self.shared: SharedMemory | None = None  # what the pool lies in, when others may map it

    def close(self) -> None:
        if self.decoder is not None:
            self.decoder.close()  # waits for such threads
        if self.weights is not None:
            self.weights.close()
        self.team.close()
        self.drop_pool()

    def drop_pool(self) -> None:
        self.pool = None
        if self.shared is not None:
            self.shared.close()
            self.shared = None


class NativeRunner(Runner):
    """Quantized weights stay quantized; dense ones become bfloat16."""

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint, isa: str = "") -> None:
        if reason := why_not(config, checkpoint.spec):
            raise ConfigError("runner", "native", f"{reason}; use runner=torch")
        self.config, self.spec = config, checkpoint.spec
        self.device = torch.device("cpu")
        self.kv_layout = _layout(config, checkpoint.spec)
        self._team = Team(config.threads, isa)
        self._torch_threads = TorchThreads(config.threads)  # which sample
        self._held = _Resources(self._team)
        self._close = weakref.finalize(self, self._held.close)
        self._weights = self._held.weights = self._pack(checkpoint)
        self._decoder = Decoder(self._team, self._weights.desc, self._weights.layers)
        self._held.decoder = self._decoder
        self._desc = StepDesc()
        self._logits = torch.empty(_FEW_ROWS, self.spec.vocab_size)

    def free_bytes(self) -> int:
        return max(0, psutil.virtual_memory().available - self._scratch_bytes())

    def allocate_kv(self, num_blocks: int) -> None:
        self._team.quiesce()
        self._held.drop_pool()
        size = num_blocks * self.kv_layout.block_bytes
        free = psutil.virtual_memory().available
        if size > free:
            fitting = free // self.kv_layout.block_bytes
            remedy = f"the pool does not fit; lower it to {fitting}"
            raise OutOfMemory("num_kv_blocks", num_blocks, remedy)
        if self.config.share_kv_memory:
            self._held.shared = SharedMemory("kv", size, huge_pages=True)
        buffer = self._held.shared.array if self._held.shared is not None else _zeroed(size)
        flat = torch.frombuffer(buffer, dtype=_KV_DTYPES[self.kv_layout.dtype])
        self._held.pool = flat.view(num_blocks, *self.kv_layout.shape)

    def kv_memory(self) -> object:
        return self._held.shared or self.kv_pool()

    def kv_pool(self) -> torch.Tensor:
        assert self._held.pool is not None, "allocate_kv comes first"
        return self._held.pool

    def forward(self, inputs: StepInputs) -> StepTensors:
        self._torch_threads.fit()
        pool, rows = self.kv_pool(), len(inputs.logit_rows)
        if rows > len(self._logits):
            self._logits = torch.empty(rows, self.spec.vocab_size)
        hidden = torch.empty(len(inputs.hidden_rows), self.spec.hidden_size)
        desc = self._desc
        desc.kv_pool, desc.num_blocks = pool.data_ptr(), len(pool)
        desc.logits, desc.hidden = self._logits.data_ptr(), hidden.data_ptr()
        arrays = _fill(desc, inputs)
        self._decoder.step(desc)
        del arrays  # the call is done with them
        return StepTensors(self._logits[:rows], hidden if len(hidden) else None)

    def warm_up(self) -> None:
        """Run one token through a pool of its own."""
        block = np.zeros(self.kv_layout.block_bytes, np.uint8)
        one, starts = np.ones(1, np.int32), np.array([0, 1], np.int32)
        zero = np.zeros(1, np.int32)
        inputs = StepInputs(zero, zero, starts, one, zero[None], zero)
        desc = StepDesc(num_blocks=1, kv_pool=block.ctypes.data, logits=self._logits.data_ptr())
        arrays = _fill(desc, inputs)
        self._decoder.step(desc)
        self._team.quiesce()  # nobody reads the block any more
        self.take_times()
        del arrays, block

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        return self._team.isa

    @property
    def weight_bytes(self) -> int:
        """What the packed matrices take; a step of one token reads nearly all of it."""
        return sum(matrix.num_bytes for matrix in self._weights.matrices)

    def take_times(self) -> dict[str, float]:
        """Return the seconds spent in each phase since the last call."""
        return self._decoder.take_times()

    def close(self) -> None:
        self._close()

    def _pack(self, checkpoint: Checkpoint) -> NativeWeights:
        weights = WeightPacker(checkpoint, self._team).pack(self._num_positions())
        weights.desc.block_size = self.config.block_size
        weights.desc.kv_element = _KV_ELEMENTS[self.kv_layout.dtype]
        return weights

    def _num_positions(self) -> int:
        longest = self.spec.max_position_embeddings
        return min(longest, self.config.max_model_len or longest)

    def _scratch_bytes(self) -> int:
        """Return an upper bound of what a step needs beside weights and KV."""
        spec, tokens = self.spec, self.config.max_num_batched_tokens
        activations = 8 * spec.hidden_size + 10 * spec.q_size + 4 * spec.intermediate_size
        return tokens * activations + 4 * spec.vocab_size * min(tokens, self.config.max_num_seqs)


def _fill(desc: StepDesc, inputs: StepInputs) -> list[np.ndarray]:
    """Point the description at the inputs; return the arrays that must live through the call."""
    desc.num_tokens, desc.num_seqs = inputs.num_tokens, inputs.num_seqs
    desc.num_logits, desc.num_hidden = len(inputs.logit_rows), len(inputs.hidden_rows)
    desc.table_width = inputs.block_tables.shape[1]
    arrays = [
        np.ascontiguousarray(array, np.int32)
        for array in (
            inputs.token_ids,
            inputs.positions,
            inputs.query_starts,
            inputs.context_lens,
            inputs.block_tables,
            inputs.logit_rows,
            inputs.hidden_rows,
        )
    ]
    addresses = [array.ctypes.data for array in arrays]
    desc.token_ids, desc.positions, desc.query_starts, desc.context_lens = addresses[:4]
    desc.block_tables, desc.logit_rows, desc.hidden_rows = addresses[4:]
    return arrays


def _zeroed(size: int) -> mmap.mmap:
    """Return memory that is zero, and takes no time before it is touched.

    A head's share of a block is short, and the next is a block further: with small pages, looking
    up addresses would cost more than reading.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _layout(config: EngineConfig, spec: ModelSpec) -> KvLayout:
    dtype = "bfloat16" if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    return KvLayout(spec.num_layers, spec.num_kv_heads, config.block_size, spec.head_dim, dtype)
