"""The time of a step from a model's shape and a device's data sheet: a roofline.

Matrix products take the longer of their operations and the reading of their weights; attention the
longer of its operations and the reading of the KV cache; tensor parallelism adds two all-reduces a
layer; a layer and a step have a fixed overhead besides. All rates are the sheet's times its
efficiencies.
"""

from dataclasses import dataclass

from stafette.kvtransfer import sizing
from stafette.kvtransfer.sizing import KvShape
from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.profiling.data_sheets import Hardware
from stafette.workers.models.spec import ModelSpec

GIB = 1 << 30
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
_MULTIPLY_ADD = 2  # operations


@dataclass(frozen=True, slots=True)
class Step:
    """What is computed together."""

    prefill_tokens: int = 0
    prefill_pairs: float = 0.0  # of each of these with those before it
    decode_seqs: int = 0
    decode_kv_tokens: int = 0
    logit_rows: int = 0

    @property
    def rows(self) -> int:
        return self.prefill_tokens + self.decode_seqs


class Roofline:
    """One worker: a model on `tensor_parallel` devices of a kind."""

    def __init__(
        self, spec: ModelSpec, device: Hardware, tensor_parallel: int = 1, dtype: str | None = None
    ) -> None:
        self.spec, self.device, self.tensor_parallel = spec, device, tensor_parallel
        self.dtype = dtype or spec.dtype
        if self.dtype not in _BYTES:
            raise InvalidSetting("--dtype", self.dtype, f"must be one of {', '.join(_BYTES)}")
        if tensor_parallel < 1 or spec.num_heads % tensor_parallel:
            remedy = f"must divide the {spec.num_heads} attention heads"
            raise InvalidSetting("--tp", tensor_parallel, remedy)
        kv_dtype = "bfloat16" if self.dtype == "fp8" else self.dtype
        self._kv_shape = KvShape(spec.num_layers, spec.num_kv_heads, spec.head_dim, kv_dtype)
        self._flops = device.flops(self.dtype) * tensor_parallel
        self._bytes_per_s = device.memory_gb_s * 1e9 * device.memory_efficiency * tensor_parallel

    def step_ms(self, step: Step) -> float:
        seconds = self._products_s(step) + self._attention_s(step) + self._all_reduces_s(step)
        between_ms = self.spec.num_layers * self.device.layer_overhead_us / 1e3
        return 1e3 * seconds + between_ms + self.device.step_overhead_ms

    @property
    def kv_bytes_per_token(self) -> int:
        return sizing.token_bytes(self._kv_shape)

    @property
    def weight_bytes(self) -> int:
        """Of all devices together."""
        spec = self.spec
        layers = sum(self._layer_weights(n, read_experts=None) for n in range(spec.num_layers))
        tables = 1 if spec.tie_word_embeddings else 2
        return (layers + tables * spec.vocab_size * spec.hidden_size) * _BYTES[self.dtype]

    @property
    def kv_tokens(self) -> int:
        """Return how many tokens' KV fit beside the weights; InvalidSetting when none do."""
        device, tp = self.device, self.tensor_parallel
        usable = device.memory_gib * GIB * device.usable_memory - device.activation_gib * GIB
        left = usable - self.weight_bytes / tp
        tokens = int(left // sizing.token_bytes(self._kv_shape, tp))
        if tokens < 1:
            need = self.weight_bytes / tp / GIB
            remedy = (
                f"do not hold the model: {need:.1f} GiB of weights each, "
                f"{usable / GIB:.1f} usable: raise --tp"
            )
            raise InvalidSetting("--tp", f"{tp} x {device.name}", remedy)
        return tokens

    def _products_s(self, step: Step) -> float:
        """Of all layers and of the logits."""
        computed = read = 0.0
        for layer in range(self.spec.num_layers):
            computed += step.rows * self._layer_weights(layer, read_experts=0)
            read += self._layer_weights(layer, read_experts=step.rows)
        logits = self.spec.vocab_size * self.spec.hidden_size
        rows = max(step.logit_rows, step.decode_seqs)
        flops = _MULTIPLY_ADD * (computed + rows * logits)
        compute_s = flops / (self._flops * self.device.compute_efficiency)
        read_bytes = (read + (logits if rows else 0)) * _BYTES[self.dtype]
        return max(compute_s, read_bytes / self._bytes_per_s)

    def _layer_weights(self, layer: int, read_experts: int | None) -> int:
        """Return a layer's weights: all (None), those of one token (0), those that many read."""
        spec = self.spec
        attention = 2 * spec.hidden_size * (spec.q_size + spec.kv_size)
        if spec.moe is None or not spec.is_sparse(layer):
            return attention + 3 * spec.hidden_size * spec.intermediate_size
        moe = spec.moe
        expert = 3 * spec.hidden_size * moe.intermediate_size
        share = moe.experts_per_token / moe.num_experts
        match read_experts:
            case None:
                experts = float(moe.num_experts)
            case 0:
                experts = float(moe.experts_per_token)
            case rows:  # each chooses for itself
                experts = moe.num_experts * (1 - (1 - share) ** rows)
        return attention + spec.hidden_size * moe.num_experts + int(experts * expert)

    def _attention_s(self, step: Step) -> float:
        per_pair = 2 * _MULTIPLY_ADD * self.spec.q_size * self.spec.num_layers
        rate = self._flops * self.device.attention_efficiency
        prefill_s = step.prefill_pairs * per_pair / rate
        decode_s = step.decode_kv_tokens * self._kv_bytes_read / self._bytes_per_s
        return prefill_s + decode_s

    @property
    def _kv_bytes_read(self) -> int:
        """Of a token, by all devices: those that hold the same head all read it."""
        return sizing.token_bytes(self._kv_shape, self.tensor_parallel) * self.tensor_parallel

    def _all_reduces_s(self, step: Step) -> float:
        if self.tensor_parallel == 1:
            return 0.0
        device, tp = self.device, self.tensor_parallel
        each_bytes = step.rows * self.spec.hidden_size * _BYTES["bfloat16"]
        travelling = 2 * (tp - 1) / tp * each_bytes
        each_s = travelling / (device.link_gb_s * 1e9 * device.link_efficiency)
        return 2 * self.spec.num_layers * (each_s + device.all_reduce_us / 1e6)
