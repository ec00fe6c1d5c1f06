"""Replays a whole decode step as one CUDA graph: hundreds of kernel launches for the price of one.

A graph has fixed shapes and fixed addresses. So there is one for each of some batch sizes; a batch
is padded to the next of them with rows that have no context and write nowhere (slot -1). All its
inputs lie in one buffer and arrive in one copy. The largest is captured first and all share one
memory pool, so that together they need little more than the largest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from stafette.workers.attention.backend import AttentionMetadata
from stafette.workers.runner.runner import StepInputs
from stafette.workers.runner.step_batch import StepBatch

_LARGEST = 512  # above it a step is long enough to hide its launches
_INTS_PER_ROW = 5  # a slot takes two; token, position and context one each
_STAGES = 2  # host buffers: one is filled while the other is on its way

Forward = Callable[[StepBatch], torch.Tensor]


class Graph(Protocol):
    """Work on a device that was recorded once. It reads and writes where it did then."""

    def capture(self, run: Callable[[], None]) -> None: ...

    def replay(self) -> None: ...


class GraphDevice(Protocol):
    """What is needed of a GPU; in tests a fake keeps its rules."""

    device: torch.device

    def graph(self) -> Graph: ...

    def host_buffer(self, size: int) -> torch.Tensor:
        """Return int32 host memory from which copies run in the background."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        """Start a copy; what is returned waits until `source` may be changed again."""


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """What sizes the buffers."""

    max_num_seqs: int
    max_model_len: int
    block_size: int

    @property
    def table_width(self) -> int:
        return -(-self.max_model_len // self.block_size)


@dataclass(frozen=True, slots=True)
class _Fields:
    """A step's inputs as views of one flat int32 buffer, laid out for one batch size."""

    slots: torch.Tensor  # int64; first, where it is aligned
    token_ids: torch.Tensor
    positions: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    flat: torch.Tensor

    @classmethod
    def of(cls, buffer: torch.Tensor, size: int, width: int) -> "_Fields":
        flat = buffer[: size * (_INTS_PER_ROW + width)]
        slots, tables = flat[: 2 * size].view(torch.int64), flat[_INTS_PER_ROW * size :]
        token_ids, positions, context_lens = flat[2 * size : _INTS_PER_ROW * size].view(3, size)
        return cls(slots, token_ids, positions, context_lens, tables.view(size, width), flat)


class DecodeGraphs:
    """One graph for each batch size; `run` takes steps of one token a sequence."""

    def __init__(self, forward: Forward, limits: GraphLimits, gpu: GraphDevice) -> None:
        self._forward, self._limits, self._gpu = forward, limits, gpu
        self.sizes = batch_sizes(limits.max_num_seqs)
        length = self.sizes[-1] * (_INTS_PER_ROW + limits.table_width)
        self._inputs = torch.zeros(length, dtype=torch.int32, device=gpu.device)
        self._starts = torch.arange(self.sizes[-1] + 1, dtype=torch.int32, device=gpu.device)
        self._staging = [gpu.host_buffer(length) for _ in range(_STAGES)]
        self._waits: list[Callable[[], None]] = [_nothing] * _STAGES
        self._turn = 0
        self._hidden: torch.Tensor | None = None
        self._graphs: dict[int, Graph] = {}

    def capture(self) -> None:
        """Record every size, the largest first."""
        for size in reversed(self.sizes):
            fields = _Fields.of(self._inputs, size, self._limits.table_width)
            _fill_padding(fields, 0)
            if self._hidden is None:
                self._hidden = torch.empty_like(self._forward(self._batch(fields)))
            graph = self._gpu.graph()
            graph.capture(self._step(fields, self._hidden[:size]))
            self._graphs[size] = graph

    def takes(self, inputs: StepInputs) -> bool:
        """Whether a step is pure decode, and small enough."""
        return inputs.num_tokens == inputs.num_seqs <= self.sizes[-1]

    def run(self, inputs: StepInputs) -> torch.Tensor:
        """Return [tokens, hidden], valid until the next run."""
        assert self._hidden is not None, "capture comes first"
        size = next(size for size in self.sizes if size >= inputs.num_seqs)
        self._upload(inputs, size)
        self._graphs[size].replay()
        return self._hidden[: inputs.num_seqs]

    def _upload(self, inputs: StepInputs, size: int) -> None:
        turn = self._turn = (self._turn + 1) % _STAGES
        self._waits[turn]()  # the copy before the last one has left this buffer
        width = self._limits.table_width
        staged = _Fields.of(self._staging[turn], size, width)
        _fill(staged, inputs, self._limits.block_size)
        target = _Fields.of(self._inputs, size, width)
        self._waits[turn] = self._gpu.copy(staged.flat, target.flat)

    def _step(self, fields: _Fields, out: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            out.copy_(self._forward(self._batch(fields)))

        return run

    def _batch(self, fields: _Fields) -> StepBatch:
        size = len(fields.token_ids)
        meta = AttentionMetadata(
            query_starts=self._starts[: size + 1],
            context_lens=fields.context_lens,
            block_tables=fields.block_tables,
            slots=fields.slots,
            max_query_len=1,
            max_context_len=self._limits.max_model_len,
        )
        return StepBatch(fields.token_ids, fields.positions, meta)


def batch_sizes(max_num_seqs: int) -> list[int]:
    """Return 1, 2, 4, 8, 16, 24, … and from 256 on every 16th; the last is the largest batch."""
    largest = min(max_num_seqs, _LARGEST)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, _LARGEST + 1, 16), largest}
    return sorted(size for size in sizes if size <= largest)


def _fill(fields: _Fields, inputs: StepInputs, block_size: int) -> None:
    """Write a step's rows. Older tables may show past its contexts: nobody reads there."""
    rows, (_, width) = inputs.num_seqs, inputs.block_tables.shape
    fields.slots[:rows] = torch.from_numpy(inputs.slots(block_size))
    fields.token_ids[:rows] = torch.from_numpy(inputs.token_ids)
    fields.positions[:rows] = torch.from_numpy(inputs.positions)
    fields.context_lens[:rows] = torch.from_numpy(inputs.context_lens)
    width = min(width, fields.block_tables.shape[1])
    fields.block_tables[:rows, :width] = torch.from_numpy(
        np.ascontiguousarray(inputs.block_tables[:, :width])
    )
    _fill_padding(fields, rows)


def _fill_padding(fields: _Fields, rows: int) -> None:
    fields.slots[rows:] = -1
    fields.token_ids[rows:] = 0
    fields.positions[rows:] = 0
    fields.context_lens[rows:] = 0


def _nothing() -> None: ...


class CudaGraph:
    """torch's graph. It runs the work once ahead of recording: compiling cannot be recorded."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, run: Callable[[], None]) -> None:
        run()
        torch.cuda.synchronize()
        # Other threads may go on using the device: transfers of KV do.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            run()

    def replay(self) -> None:
        self._graph.replay()


class CudaGraphDevice:
    """A real GPU: pinned host memory, copies in the stream's order, one pool for all graphs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def graph(self) -> CudaGraph:
        return CudaGraph(self._pool)

    def host_buffer(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int32, pin_memory=True)

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        target.copy_(source, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        return done.synchronize
