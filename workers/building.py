"""Builds an engine from its flags: opens the model, chooses a runner, sizes the KV pool."""

import logging
import os
import socket
import time

import torch

from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.event_log import EventLog
from stafette.workers.config import EngineConfig
from stafette.workers.engine import Engine, EngineParts
from stafette.workers.errors import ConfigError
from stafette.workers.executor import Executor
from stafette.workers.kv_sizing import num_kv_blocks
from stafette.workers.kvcache.pool import BlockPool
from stafette.workers.models.spec import ModelSpec
from stafette.workers.runner import native
from stafette.workers.runner.cpu_process import in_passing_thread
from stafette.workers.runner.rank_process import RankSource
from stafette.workers.runner.runner import Runner
from stafette.workers.runner.torch_runner import TorchRunner
from stafette.workers.sampling.ngram import NgramProposer
from stafette.workers.sampling.sampler import Sampler
from stafette.workers.sampling.structured import GrammarCompiler
from stafette.workers.scheduler import Scheduler
from stafette.workers.scheduler_config import SchedulerConfig
from stafette.workers.weights.checkpoint import Checkpoint
from stafette.workers.weights.opening import open_checkpoint, open_tokenizer
from stafette.workers.weights.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def build_engine(
    config: EngineConfig, worker_id: str | None = None, ranks: RankSource | None = None
) -> Engine:
    """Return an engine that is ready for requests. Every wrong flag raises before any runs.

    `worker_id` names this engine in its KV events; None: by its host and process. `ranks` starts
    those of a tensor-parallel engine; None: on this host.
    """
    if _device(config) == "cpu":
        return in_passing_thread(lambda: _build(config, worker_id, ranks))
    return _build(config, worker_id, ranks)


def _build(config: EngineConfig, worker_id: str | None, ranks: RankSource | None) -> Engine:
    started = time.monotonic()
    checkpoint = open_checkpoint(config.model, config.quantization)
    tokenizer = open_tokenizer(config.model, config.tokenizer)
    max_model_len = _max_model_len(config, checkpoint.spec)
    runner = make_runner(config, checkpoint, ranks)
    try:
        parts = _assemble(config, runner, tokenizer, max_model_len, worker_id or _here())
        runner.warm_up()
    except BaseException:
        runner.close()  # its threads, memory and processes would outlive the error
        raise
    logger.info("engine ready in %.2f s", time.monotonic() - started)
    return Engine(config, parts)


def make_runner(
    config: EngineConfig, checkpoint: Checkpoint, ranks: RankSource | None = None
) -> Runner:
    """Return the fastest runner that can serve this model under these flags."""
    if config.tensor_parallel_size > 1:
        from stafette.workers.runner.parallel import ParallelRunner

        return ParallelRunner(config, checkpoint, ranks)
    reason = _why_not_native(config, checkpoint.spec)
    if reason is None:
        return native.NativeRunner(config, checkpoint)
    if config.runner == "native":
        raise ConfigError("runner", "native", f"{reason}; use runner=auto")
    if config.runner == "auto" and _device(config) == "cpu":
        logger.warning("running on torch, more slowly: %s", reason)
    return TorchRunner(config, checkpoint)


def _assemble(
    config: EngineConfig, runner: Runner, tokenizer: Tokenizer, max_model_len: int, worker_id: str
) -> EngineParts:
    events = EventLog(worker_id, epoch=time.time_ns())
    pool = _make_pool(config, runner, max_model_len, events)
    eos = tokenizer.eos_token_ids
    grammars = GrammarCompiler(tokenizer.to_json(), runner.spec.vocab_size, eos)
    scheduler = Scheduler(
        SchedulerConfig.of(config, max_model_len, eos),
        pool,
        time.monotonic,
        NgramProposer(config) if config.speculative_tokens else None,
        BlockHasher(config.prefix_cache_key, config.block_size, config.model),
    )
    return EngineParts(
        pool=pool,
        kv_events=events,
        scheduler=scheduler,
        executor=Executor(runner, Sampler(eos, grammars, config.seed), config.share_kv_memory),
        tokenizer=tokenizer,
        grammars=grammars,
    )


def _here() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


def _why_not_native(config: EngineConfig, spec: ModelSpec) -> str | None:
    if config.runner == "torch":
        return "runner is torch"
    if _device(config) != "cpu":
        return "the device is not a CPU"
    return native.why_not(config, spec)


def _device(config: EngineConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    longest = spec.max_position_embeddings
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        remedy = f"the model was made for {longest}: lower it"
        raise ConfigError("max_model_len", config.max_model_len, remedy)
    return config.max_model_len


def _make_pool(
    config: EngineConfig, runner: Runner, max_model_len: int, events: EventLog
) -> BlockPool:
    blocks = num_kv_blocks(
        config,
        runner.kv_layout,
        runner.free_bytes(),
        runner.device.type == "cpu",
        max_model_len,
    )
    runner.allocate_kv(blocks)
    return BlockPool(blocks, config.block_size, config.enable_prefix_caching, events.add)
