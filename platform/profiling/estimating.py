"""A profile without hardware: the points that a measurement would give, by first principles."""

from dataclasses import dataclass
from typing import Any

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.data_sheets import Hardware, hardware, model_spec
from stafette.platform.profiling.document import Document, Limits
from stafette.platform.profiling.first_principles import Roofline, Step
from stafette.platform.profiling.points import Point, steps_of
from stafette.workers.mocker.speed_profile import Profile

_PROMPTS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_SHARES = (0.0, 0.5, 0.9)
_BATCHES = (1, 4, 16, 32, 64, 128, 256)
_CONTEXTS = (256, 1024, 4096, 16_384)
_BLOCK_SIZE = 16
# Shorter prompts take the time of the weights' reading, which longer ones hide: a model that is
# linear can be right for one of the two, and the longer ones are most of the work.
_LEAST_COMPUTED = 512
# Few sequences read few of a sparse model's experts; many, as in a server, nearly all of them.
_LEAST_SPARSE_BATCH = 16
_TRANSFER_LATENCY_MS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """What is estimated: a model on so many devices, with an engine's flags."""

    model: str
    hardware: str
    tensor_parallel: int = 1
    dtype: str | None = None  # None: the model's own
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int | None = None  # None: what the model was made for

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "max_num_batched_tokens", "max_num_seqs", "max_model_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = "--tp" if name == "tensor_parallel" else f"--{name.replace('_', '-')}"
                raise InvalidSetting(flag, value, "must be at least 1")


def estimate(worker: Worker) -> Document:
    """Return the profile; InvalidSetting when the model does not fit."""
    spec, device = model_spec(worker.model), hardware(worker.hardware)
    roofline = Roofline(spec, device, worker.tensor_parallel, worker.dtype)
    limits = Limits(
        max_num_seqs=worker.max_num_seqs,
        max_num_batched_tokens=worker.max_num_batched_tokens,
        max_model_len=min(worker.max_model_len or 1 << 30, spec.max_position_embeddings),
        kv_tokens=roofline.kv_tokens // _BLOCK_SIZE * _BLOCK_SIZE,
        block_size=_BLOCK_SIZE,
    )
    return Document(
        subject=_subject(worker, roofline, device),
        limits=limits,
        points=(*_prefills(roofline, limits), *_decodes(roofline, limits)),
        base=Profile(
            kv_bytes_per_token=roofline.kv_bytes_per_token,
            transfer_gb_s=device.network_gb_s * device.network_efficiency * worker.tensor_parallel,
            transfer_latency_ms=_TRANSFER_LATENCY_MS,
        ),
    )


def prefill_ms(roofline: Roofline, new: int, cached: int, max_num_batched_tokens: int) -> float:
    """Return the time of a prompt alone, chunk after chunk."""
    total, start = 0.0, cached
    while new:
        chunk = min(new, max_num_batched_tokens)
        pairs = chunk * (start + chunk / 2)
        total += roofline.step_ms(Step(chunk, pairs, logit_rows=1))
        new, start = new - chunk, start + chunk
    return total


def _subject(worker: Worker, roofline: Roofline, device: Hardware) -> dict[str, Any]:
    return {
        "kind": "estimate",
        "model": worker.model,
        "hardware": device.name,
        "data_sheet": device.source,
        "tensor_parallel_size": worker.tensor_parallel,
        "dtype": roofline.dtype,
        "weight_bytes": roofline.weight_bytes,
        "efficiencies": {
            "compute": device.compute_efficiency,
            "attention": device.attention_efficiency,
            "memory": device.memory_efficiency,
            "link": device.link_efficiency,
            "network": device.network_efficiency,
        },
    }


def _prefills(roofline: Roofline, limits: Limits) -> list[Point]:
    found = {}
    for prompt in _PROMPTS:
        for share in _SHARES:
            cached = int(prompt * share) // _BLOCK_SIZE * _BLOCK_SIZE
            new, budget = prompt - cached, limits.max_num_batched_tokens
            too_short = new < min(_LEAST_COMPUTED, limits.max_model_len // 4)
            if too_short or prompt >= limits.max_model_len or prompt > limits.kv_tokens:
                continue
            ms = prefill_ms(roofline, new, cached, budget)
            found[new, cached] = Point(
                kind="prefill",
                ms=round(ms, 4),
                prompt_tokens=new,
                cached_tokens=cached,
                steps=steps_of(new, budget),
            )
    return list(found.values())


def _decodes(roofline: Roofline, limits: Limits) -> list[Point]:
    found = []
    for context in _CONTEXTS:
        for batch in _BATCHES:
            kv_tokens = batch * context
            too_long = context >= limits.max_model_len or kv_tokens > limits.kv_tokens
            too_few = roofline.spec.moe is not None and batch < _LEAST_SPARSE_BATCH
            if too_long or too_few or batch > limits.max_num_seqs:
                continue
            ms = roofline.step_ms(Step(decode_seqs=batch, decode_kv_tokens=kv_tokens))
            found.append(
                Point(
                    kind="decode",
                    ms=round(ms, 4),
                    batch=batch,
                    context_tokens=context,
                    kv_tokens=kv_tokens,
                )
            )
    return found
