"""Checks a checkpoint's tensors against its spec, before anything is read or run."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from stafette.workers.errors import CheckpointError
from stafette.workers.models.spec import ModelSpec
from stafette.workers.weights.checkpoint import Checkpoint

_MOST_NAMED = 8  # problems listed in one error


@dataclass(frozen=True, slots=True)
class ExpectedTensor:
    name: str
    shape: tuple[int, ...]
    required: bool = True


def verify_shapes(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError naming every tensor that is missing or has a wrong shape."""
    problems = list(islice(_problems(checkpoint), _MOST_NAMED + 1))
    if not problems:
        return
    name, shape, what = problems[0]
    others = [f"{name} {what}" for name, _, what in problems[1:_MOST_NAMED]]
    more = ["and more"] if len(problems) > _MOST_NAMED else []
    remedy = "; ".join([what, *others, *more])
    raise CheckpointError(name, shape, f"{remedy}: config and tensors do not belong together")


def expected_tensors(spec: ModelSpec) -> Iterator[ExpectedTensor]:
    """Return what the model is made of; a bias is optional where the spec does not ask for it."""
    table = (spec.vocab_size, spec.hidden_size)
    yield ExpectedTensor("model.embed_tokens.weight", table)
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        yield from _attention(spec, prefix)
        if spec.is_sparse(layer):
            yield from _experts(spec, prefix + "mlp.")
        else:
            yield from _feed_forward(spec, prefix + "mlp.", spec.intermediate_size)
    yield ExpectedTensor("model.norm.weight", (spec.hidden_size,))
    if not spec.tie_word_embeddings:
        yield ExpectedTensor("lm_head.weight", table)


def _problems(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...] | None, str]]:
    """Lazy: a header that claims a million layers is found out at the first that is missing."""
    present = frozenset(checkpoint.names())
    for expected in expected_tensors(checkpoint.spec):
        if expected.name not in present:
            if expected.required:
                yield expected.name, None, "is missing"
            continue
        shape = checkpoint.shape(expected.name)
        if shape != expected.shape:
            yield expected.name, shape, f"must be {expected.shape}, not {shape}"


def _attention(spec: ModelSpec, prefix: str) -> Iterator[ExpectedTensor]:
    hidden, own = spec.hidden_size, prefix + "self_attn."
    yield ExpectedTensor(prefix + "input_layernorm.weight", (hidden,))
    yield from _linear(own + "q_proj", spec.q_size, hidden, spec.attention_bias)
    yield from _linear(own + "k_proj", spec.kv_size, hidden, spec.attention_bias)
    yield from _linear(own + "v_proj", spec.kv_size, hidden, spec.attention_bias)
    yield from _linear(own + "o_proj", hidden, spec.q_size)
    if spec.qk_norm:
        yield ExpectedTensor(own + "q_norm.weight", (spec.head_dim,))
        yield ExpectedTensor(own + "k_norm.weight", (spec.head_dim,))
    yield ExpectedTensor(prefix + "post_attention_layernorm.weight", (hidden,))


def _feed_forward(spec: ModelSpec, prefix: str, size: int) -> Iterator[ExpectedTensor]:
    yield from _linear(prefix + "gate_proj", size, spec.hidden_size)
    yield from _linear(prefix + "up_proj", size, spec.hidden_size)
    yield from _linear(prefix + "down_proj", spec.hidden_size, size)


def _experts(spec: ModelSpec, prefix: str) -> Iterator[ExpectedTensor]:
    assert spec.moe is not None
    yield ExpectedTensor(prefix + "gate.weight", (spec.moe.num_experts, spec.hidden_size))
    for expert in range(spec.moe.num_experts):
        own = f"{prefix}experts.{expert}."
        yield from _feed_forward(spec, own, spec.moe.intermediate_size)


def _linear(name: str, rows: int, columns: int, biased: bool = False) -> Iterator[ExpectedTensor]:
    yield ExpectedTensor(f"{name}.weight", (rows, columns))
    yield ExpectedTensor(f"{name}.bias", (rows,), required=biased)
