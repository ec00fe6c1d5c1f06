"""Runs any architecture on torch, on a CPU or a CUDA device: the tier that needs no compiler."""

import os
from dataclasses import asdict

import numpy as np
import torch

from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.transports.cuda import joined
from stafette.workers.attention.backend import AttentionBackend, AttentionMetadata, AttentionShape
from stafette.workers.attention.registry import choose
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, OutOfMemory
from stafette.workers.models.layers import Step
from stafette.workers.models.linear import Adapters
from stafette.workers.models.lora import Adapter, LoraBatch, group_tokens, load_adapter
from stafette.workers.models.registry import build_model
from stafette.workers.models.sharding import SOLO, TensorParallel
from stafette.workers.runner.cpu_process import keep_freed_memory
from stafette.workers.runner.cuda_graphs import (
    CudaGraphDevice,
    DecodeGraphs,
    GraphDevice,
    GraphLimits,
)
from stafette.workers.runner.device import (
    TORCH_DTYPES,
    choose_device,
    choose_dtype,
    choose_kv_dtype,
    free_device_bytes,
)
from stafette.workers.runner.runner import KvLayout, Runner, StepInputs, StepTensors
from stafette.workers.runner.step_batch import StepBatch
from stafette.workers.runner.torch_threads import TorchThreads
from stafette.workers.weights.checkpoint import Checkpoint

_OUT_OF_MEMORY = "not enough memory"  # how torch's CPU allocator says so, in a RuntimeError


class TorchRunner(Runner):
    """One rank: its share of the model, and of every KV block."""

    def __init__(
        self, config: EngineConfig, checkpoint: Checkpoint, tp: TensorParallel = SOLO
    ) -> None:
        self.config, self.spec, self.tp = config, checkpoint.spec, tp
        self.device = choose_device(config)
        self.dtype = choose_dtype(config, self.spec, self.device)
        self._threads = TorchThreads(config.threads)  # on a CPU
        if self.device.type == "cpu":
            keep_freed_memory()
        try:
            self.model = build_model(checkpoint, self.dtype, self.device, tp)
        except torch.OutOfMemoryError as error:
            remedy = f"its weights do not fit on {self.device}; raise it, or quantize the model"
            raise OutOfMemory("tensor_parallel_size", tp.size, remedy) from error
        self.kv_layout = self._layout()
        self.attention = self._backend()
        self._adapters: dict[int, Adapter] = {}
        self._pool: torch.Tensor | None = None
        self._shared: SharedMemory | None = None  # what the pool lies in, when others may map it
        self._layers: list[torch.Tensor] = []
        self._graphs: DecodeGraphs | None = None

    def free_bytes(self) -> int:
        free = max(0, free_device_bytes(self.device) - self._activation_bytes())
        return int(free / (1 + self.attention.beside_pool))

    def allocate_kv(self, num_blocks: int) -> None:
        self._drop_pool()
        free = free_device_bytes(self.device)
        if num_blocks * self.kv_layout.block_bytes > free:
            raise _too_many_blocks(num_blocks, free // self.kv_layout.block_bytes)
        shape, dtype = (num_blocks, *self.kv_layout.shape), TORCH_DTYPES[self.kv_layout.dtype]
        try:
            # Zeros: a masked row's share is 0, and 0 times what was never written must be 0.
            if self.config.share_kv_memory and self.device.type == "cpu":
                size = num_blocks * self.kv_layout.block_bytes
                # The first rank of a node seals those of the others, when it has joined them.
                sealed = self.tp.leads_node
                self._shared = SharedMemory("kv", size, huge_pages=True, sealed=sealed)
                self._pool = torch.from_numpy(self._shared.array).view(dtype).view(shape)
            else:
                self._pool = torch.zeros(shape, dtype=dtype, device=self.device)
        except RuntimeError as error:
            raise _too_many_blocks(num_blocks, num_blocks // 2) from error
        self._layers = list(self._pool.unbind(1))

    def kv_pool(self) -> torch.Tensor:
        assert self._pool is not None, "allocate_kv comes first"
        return self._pool

    def kv_memory(self) -> object:
        return self._shared or self.kv_pool()

    def shared_kv(self) -> dict[str, object]:
        """Return by what another process of this engine finds the pool, which it then joins."""
        told: dict[str, object] = {"layout": asdict(self.kv_layout)}
        if self._shared is not None:
            return told | {"pid": os.getpid(), "fd": self._shared.fd}
        if self.device.type != "cuda":
            raise ConfigError("share_kv_memory", self.config.share_kv_memory, "must be set")
        pool = self.kv_pool()
        device = pool.device.index or 0
        return told | {"gpu": asdict(joined.share(pool.data_ptr(), pool.nbytes, device))}

    def forward(self, inputs: StepInputs) -> StepTensors:
        try:
            with torch.no_grad():
                return self._forward(inputs)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY in str(error):
                raise self._step_too_large(inputs) from error
            raise

    def warm_up(self) -> None:
        """Run one token that is written nowhere: kernels are chosen and compiled. Then record."""
        one = np.zeros(1, np.int32)
        starts, lens = np.array([0, 1], np.int32), np.ones(1, np.int32)
        batch = self.upload(StepInputs(one, one, starts, lens, one[None], one))
        batch.meta.slots.fill_(-1)
        with torch.no_grad():
            self.model.logits(self.forward_tensors(batch))
        if self._records():
            self.record_graphs(CudaGraphDevice(self.device))

    def record_graphs(self, gpu: GraphDevice) -> None:
        """Let graphs serve the steps of pure decode from now on."""
        length = self.config.max_model_len or self.spec.max_position_embeddings
        limits = GraphLimits(self.config.max_num_seqs, length, self.config.block_size)
        self.model.rope.tabulate(length, self.dtype)
        self._graphs = DecodeGraphs(self.forward_tensors, limits, gpu)
        with torch.no_grad():
            self._graphs.capture()

    def close(self) -> None:
        self._drop_pool()
        if hasattr(self, "model"):
            del self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def add_lora(self, slot: int, path: str) -> None:
        if not self.config.enable_lora:
            raise ConfigError("enable_lora", False, "set it to serve adapters")
        if not 0 <= slot < self.config.max_loras:
            remedy = f"has no slot {slot}; raise it or remove an adapter"
            raise ConfigError("max_loras", self.config.max_loras, remedy)
        self._adapters[slot] = load_adapter(path, self.model, self.config.max_lora_rank)

    def remove_lora(self, slot: int) -> None:
        self._adapters.pop(slot, None)

    def upload(self, inputs: StepInputs) -> StepBatch:
        """Copy a step's inputs to the device."""
        meta = AttentionMetadata(
            query_starts=self._tensor(inputs.query_starts),
            context_lens=self._tensor(inputs.context_lens),
            block_tables=self._tensor(inputs.block_tables),
            slots=self._tensor(inputs.slots(self.kv_layout.block_size)),
            max_query_len=int(np.diff(inputs.query_starts).max()),
            max_context_len=int(inputs.context_lens.max()),
            sequences=inputs.sequences,
        )
        return StepBatch(self._tensor(inputs.token_ids), self._tensor(inputs.positions), meta)

    def forward_tensors(self, batch: StepBatch, adapters: Adapters | None = None) -> torch.Tensor:
        """Return [tokens, hidden]. Reads nothing but tensors, so that a CUDA graph can hold it."""
        cos, sin = self.model.rope.angles(batch.positions, self.dtype)
        step = Step(cos, sin, self._layers, self.attention, batch.meta, adapters)
        return self.model.hidden(batch.token_ids, step)

    def _drop_pool(self) -> None:
        self._pool, self._layers, self._graphs = None, [], None
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _forward(self, inputs: StepInputs) -> StepTensors:
        if self.device.type == "cpu":
            self._threads.fit()
        hidden = self._hidden(inputs)
        logits = self.model.logits(self._pick(hidden, inputs.logit_rows))
        if len(inputs.hidden_rows) == 0:
            return StepTensors(logits)
        return StepTensors(logits, self._pick(hidden, inputs.hidden_rows).float())

    def _hidden(self, inputs: StepInputs) -> torch.Tensor:
        adapters = self._adapters_of(inputs)
        if self._graphs is not None and adapters is None and self._graphs.takes(inputs):
            return self._graphs.run(inputs)
        return self.forward_tensors(self.upload(inputs), adapters)

    def _records(self) -> bool:
        wanted = self.device.type == "cuda" and not self.config.enforce_eager
        return wanted and self.attention.recordable and self.model.recordable

    def _adapters_of(self, inputs: StepInputs) -> LoraBatch | None:
        slots = inputs.lora_slots
        if slots is None or slots.max() < 0:
            return None
        groups = group_tokens(slots, inputs.query_starts, self._adapters)
        return LoraBatch([(self._tensor(tokens), adapter) for tokens, adapter in groups])

    def _pick(self, hidden: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        everything = len(rows) == len(hidden) and bool((np.diff(rows) == 1).all())
        return hidden if everything else hidden.index_select(0, self._tensor(rows))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)

    def _layout(self) -> KvLayout:
        return KvLayout(
            num_layers=self.spec.num_layers,
            num_kv_heads=self.tp.count(self.spec.num_kv_heads),
            block_size=self.config.block_size,
            head_dim=self.spec.head_dim,
            dtype=choose_kv_dtype(self.config, self.dtype),
            first_kv_head=self.tp.span(self.spec.num_kv_heads)[0],
        )

    def _backend(self) -> AttentionBackend:
        shape = AttentionShape(
            num_heads=self.tp.count(self.spec.num_heads),
            num_kv_heads=self.kv_layout.num_kv_heads,
            head_dim=self.spec.head_dim,
            block_size=self.config.block_size,
            scale=self.spec.head_dim**-0.5,
            sliding_window=self.model.sliding_window,
        )
        name = self.config.attention_backend
        return choose(name, shape, self.device, self.kv_layout.dtype)(shape)

    def _activation_bytes(self) -> int:
        """Return an upper bound of what a step needs beside weights and KV."""
        spec, tokens = self.spec, self.config.max_num_batched_tokens
        width = 6 * spec.hidden_size + 4 * spec.q_size + 3 * spec.intermediate_size
        if spec.moe is not None:
            width += spec.moe.experts_per_token * (
                3 * spec.moe.intermediate_size + spec.hidden_size
            )
        logits = 8 * spec.vocab_size * min(tokens, self.config.max_num_seqs)
        return tokens * width * self.dtype.itemsize + logits

    def _step_too_large(self, inputs: StepInputs) -> OutOfMemory:
        remedy = f"a step of {inputs.num_tokens} tokens did not fit; lower it to "
        remedy += f"{max(1, inputs.num_tokens // 2)}, or lower gpu_memory_utilization"
        return OutOfMemory("max_num_batched_tokens", self.config.max_num_batched_tokens, remedy)


def _too_many_blocks(num_blocks: int, fitting: int) -> OutOfMemory:
    return OutOfMemory("num_kv_blocks", num_blocks, f"the pool does not fit; lower it to {fitting}")
