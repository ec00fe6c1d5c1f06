"""Tensor parallelism: the first rank runs here, each other in a process of its own."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch

from stafette.kvtransfer.memory import SharedMemory
from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, EngineDead, EngineError
from stafette.workers.models.sharding import TensorParallel, check_shardable
from stafette.workers.runner.collectives import Seat, join, open_meeting
from stafette.workers.runner.device import choose_device
from stafette.workers.runner.kv_joining import join_kv
from stafette.workers.runner.link import pack_inputs
from stafette.workers.runner.rank_process import LocalRanks, RankSource
from stafette.workers.runner.runner import KvMemory, Runner, StepInputs, StepTensors
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.weights.checkpoint import Checkpoint

_POLL_S = 0.0002  # how often a step on a GPU is looked at
T = TypeVar("T")


class ParallelRunner(Runner):
    """Tells every rank the same, and does it here too. A rank that ends ends the engine.

    `kv_pool` and `kv_layout` are those of the first rank: its share of the heads.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        ranks: RankSource | None = None,
        *,
        start_timeout_s: float = 300.0,
        step_timeout_s: float = 60.0,
    ) -> None:
        self.spec, self.device = checkpoint.spec, choose_device(config)
        self._start_timeout_s, self._step_timeout_s = start_timeout_s, step_timeout_s
        self._dead: EngineDead | None = None
        self._joined: list[KvMemory] = []  # the other ranks'
        source = ranks or LocalRanks()
        self._host, self._per_node = source.host, config.tensor_parallel_size // source.num_nodes
        config = _share_of_threads(config, self.device, self._per_node)
        _check_fits(config, checkpoint, self.device, self._per_node)
        self._ranks = source.start(config.tensor_parallel_size, start_timeout_s)
        try:
            self._local = TorchRunner(config, checkpoint, self._assemble(config))
            self._collect(start_timeout_s)
        except BaseException:
            self._stop_ranks()
            raise
        self.kv_layout = self._local.kv_layout

    def free_bytes(self) -> int:
        """Return what every rank has; on CPUs those of a node share one memory."""
        most = min(self._everywhere("free_bytes", self._local.free_bytes))
        return most // self._per_node if self.device.type == "cpu" else most

    def allocate_kv(self, num_blocks: int) -> None:
        self._everywhere("allocate_kv", lambda: self._local.allocate_kv(num_blocks), num_blocks)

    def kv_pool(self) -> torch.Tensor:
        return self._local.kv_pool()

    def kv_memories(self) -> list[KvMemory]:
        """Map the pools of this node's other ranks, after which nobody else can write there."""
        told = self._everywhere("shared_kv", self._local.shared_kv)
        self._joined = [join_kv(each) for each in told[1 : self._per_node]]
        return [*self._local.kv_memories(), *self._joined]

    def open_members(self, settings: Callable[[int, int], dict[str, Any]]) -> list[bytes]:
        num_nodes = (len(self._ranks) + 1) // self._per_node
        if num_nodes == 1:
            return []
        told = self._everywhere("shared_kv", self._local.shared_kv)
        opened: list[bytes] = []
        for node in range(1, num_nodes):
            first = node * self._per_node
            siblings = told[first + 1 : first + self._per_node]
            own = {**settings(node, num_nodes), "siblings": siblings}
            leader = self._ranks[first - 1]
            leader.send({"op": "open_member", "settings": own})
            opened.append(leader.receive(self._step_timeout_s))
        return opened

    def forward(self, inputs: StepInputs) -> StepTensors:
        self._tell({"op": "forward", "inputs": pack_inputs(inputs)})
        try:
            tensors = self._local.forward(inputs)
            self._await_device()
        except Exception as error:
            self._die(self._culprit(error), error)
        return tensors

    def warm_up(self) -> None:
        self._everywhere("warm_up", self._local.warm_up)

    def add_lora(self, slot: int, path: str) -> None:
        self._everywhere("add_lora", lambda: self._local.add_lora(slot, path), slot, path)

    def remove_lora(self, slot: int) -> None:
        self._everywhere("remove_lora", lambda: self._local.remove_lora(slot), slot)

    def close(self) -> None:
        self._stop_ranks()
        for each in self._joined:
            if isinstance(each.buffer, SharedMemory):
                each.buffer.close()
        self._local.close()

    def _assemble(self, config: EngineConfig) -> TensorParallel:
        """Wait until every process has imported its code, then meet them."""
        size, timeout_s = config.tensor_parallel_size, self._step_timeout_s
        store = open_meeting(self._host, timeout_s)
        self._collect(self._start_timeout_s)
        for process in self._ranks:
            process.send(
                {
                    "op": "start",
                    "config": dataclasses.asdict(config),
                    "rank": process.rank,
                    "size": size,
                    "device": process.rank % self._per_node,
                    "host": self._host,
                    "port": store.port,
                    "timeout_s": timeout_s,
                }
            )
        return join(store, Seat(0, size, self._host, True), self.device, timeout_s)

    def _everywhere(self, op: str, here: Callable[[], T], *arguments: object) -> list[T]:
        """Do `op` on every rank and here; return all answers. An error here comes first."""
        self._tell({"op": op, "arguments": list(arguments)})
        failed: EngineError | None = None
        answers: list[T] = []
        try:
            answers.append(here())
        except EngineError as error:
            failed = error
        except Exception as error:
            self._die(self._culprit(error), error)
        try:
            answers += self._collect(self._step_timeout_s)
        except EngineDead as error:
            self._die(error, error)
        except EngineError as error:
            failed = failed or error
        if failed is not None:
            raise failed
        return answers

    def _tell(self, message: dict[str, Any]) -> None:
        if self._dead is not None:
            raise self._dead
        try:
            for process in self._ranks:
                process.send(message)
        except EngineDead as error:
            self._die(error, error)

    def _collect(self, timeout_s: float) -> list[Any]:
        """Return every rank's answer. All are heard before the first error is raised."""
        answers, failed = [], None
        for process in self._ranks:
            try:
                answers.append(process.receive(timeout_s))
            except EngineError as error:
                failed = failed or error
                if isinstance(error, EngineDead):
                    break
        if failed is not None:
            raise failed
        return answers

    def _await_device(self) -> None:
        """Wait for a GPU's step; a peer that is gone would otherwise never let it end."""
        if self.device.type != "cuda":
            return
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        deadline = time.monotonic() + self._step_timeout_s
        while not done.query():
            if time.monotonic() > deadline or any(rank.has_ended() for rank in self._ranks):
                raise TimeoutError("a step did not end")
            time.sleep(_POLL_S)

    def _culprit(self, error: Exception) -> EngineDead:
        """Return who ended, when one did; what one answered; else what went wrong here."""
        for process in sorted(self._ranks, key=lambda rank: not rank.has_ended(0.5)):
            try:
                process.receive(0.01)
            except EngineDead as death:
                if process.has_ended():
                    return death
            except EngineError as cause:
                return EngineDead("tensor parallel", str(cause), cause.remedy)
        if isinstance(error, EngineError):
            return EngineDead("tensor parallel", str(error), error.remedy)
        return EngineDead("tensor parallel", f"{error}", "start the engine again")

    def _die(self, death: EngineDead, cause: BaseException) -> NoReturn:
        self._dead = death
        self._stop_ranks()
        raise death from cause

    def _stop_ranks(self) -> None:
        for process in self._ranks:
            process.stop()


def _share_of_threads(config: EngineConfig, device: torch.device, per_node: int) -> EngineConfig:
    """The flag counts those of all ranks; without it they share their node's cores."""
    if device.type != "cpu":
        return config
    sharing = config.tensor_parallel_size if config.num_threads else per_node
    share = max(1, config.threads // sharing)
    return dataclasses.replace(config, num_threads=share)


def _check_fits(
    config: EngineConfig, checkpoint: Checkpoint, device: torch.device, per_node: int
) -> None:
    size = config.tensor_parallel_size
    check_shardable(checkpoint.spec, size)
    if device.type == "cuda" and torch.cuda.device_count() < per_node:
        remedy = (
            f"needs {per_node} GPUs here, where there are {torch.cuda.device_count()}: lower it"
        )
        raise ConfigError("tensor_parallel_size", size, remedy)
