"""Tiny Hugging Face models with random weights, and the same weights as a checkpoint of ours.

And which tests may run beside each other.
"""

from collections.abc import Iterator

import pytest
import torch
import transformers
from xdist.scheduler import LoadScopeScheduling

from stafette.workers.errors import CheckpointError
from stafette.workers.models.spec import ModelSpec, MoeSpec, RopeSpec
from stafette.workers.weights.checkpoint import Checkpoint, Weight
from stafette.workers.weights.embedded import embedded_model

SIZES = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    tie_word_embeddings=False,
    initializer_range=0.2,
)
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}

# Folders that take minutes: begun last, one of them would keep a core waiting at the end.
LONG = (
    "platform/on_ray",
    "workers/handover",
    "platform/jobs",
    "platform/serving",
    "workers/gpu",
)


# Both read the embedded model as Hugging Face does, which takes a minute.
TOGETHER = {"tests/workers/weights": "tests/workers/models"}


class FolderByFolder(LoadScopeScheduling):
    """A folder's tests share processes that are started once: they stay together."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.partition("::")[0].rpartition("/")[0]
        return TOGETHER.get(folder, folder)


def pytest_xdist_make_scheduler(config, log):
    return FolderByFolder(config, log)


def pytest_collection_modifyitems(items):
    def rank(item) -> int:
        folder = item.nodeid.partition("::")[0].rpartition("/")[0]
        found = [i for i, name in enumerate(LONG) if folder.endswith(name)]
        return found[0] if found else len(LONG)

    items.sort(key=rank)


class MemoryCheckpoint(Checkpoint):
    """Tensors in a dictionary, under the names that files have."""

    quantization = "none"

    def __init__(self, spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> None:
        self.spec = spec
        self.tensors = tensors

    def names(self) -> Iterator[str]:
        return iter(self.tensors)

    def load(self, name: str) -> Weight:
        if name not in self.tensors:
            raise CheckpointError("tensor", name, "is missing")
        return self.tensors[name]


class Toys:
    """Makes models: `hf` the reference, `checkpoint` the same for us."""

    def hf(self, architecture: str, seed: int = 0, **overrides) -> transformers.PreTrainedModel:
        config = CONFIGS[architecture](**(SIZES | overrides))
        config._attn_implementation = "eager"
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # made as 0 and 1: would hide mistakes
                torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
        return model

    def checkpoint(self, model: transformers.PreTrainedModel) -> MemoryCheckpoint:
        tensors = dict(_unstacked(model.state_dict()))
        if model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        return MemoryCheckpoint(_spec(model.config), tensors)


@pytest.fixture(scope="session")
def toys() -> Toys:
    return Toys()


@pytest.fixture(scope="session")
def hf_smollm2() -> transformers.PreTrainedModel:
    """The embedded model as Hugging Face reads it, in float32; nobody may change it."""
    path = embedded_model()
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def _unstacked(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Undo Hugging Face's stacking of experts, as its own save_pretrained does."""
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last not in ("gate_up_proj", "down_proj") or not prefix.endswith("experts"):
            yield name, tensor.detach()
            continue
        for index, matrix in enumerate(tensor.detach()):
            if last == "down_proj":
                yield f"{prefix}.{index}.down_proj.weight", matrix
            else:
                gate, up = matrix.chunk(2)
                yield f"{prefix}.{index}.gate_proj.weight", gate
                yield f"{prefix}.{index}.up_proj.weight", up


def _spec(config: transformers.PreTrainedConfig) -> ModelSpec:
    architecture = config.model_type
    windowed = getattr(config, "use_sliding_window", architecture == "mistral")
    return ModelSpec(
        architecture=architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        rms_norm_eps=config.rms_norm_eps,
        rope=_rope(config.rope_parameters),
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_bias=architecture == "qwen2" or getattr(config, "attention_bias", False),
        qk_norm=architecture in ("qwen3", "qwen3_moe"),
        sliding_window=config.sliding_window if windowed else None,
        moe=_moe(config) if architecture == "qwen3_moe" else None,
        dtype="float32",
    )


def _rope(parameters: dict) -> RopeSpec:
    fields = {
        "rope_theta": "theta",
        "rope_type": "kind",
        "original_max_position_embeddings": "original_max_position",
    }
    known = {fields.get(name, name): value for name, value in parameters.items()}
    return RopeSpec(**known)


def _moe(config: transformers.PreTrainedConfig) -> MoeSpec:
    every = config.decoder_sparse_step
    dense = (i for i in range(config.num_hidden_layers) if (i + 1) % every)
    return MoeSpec(
        num_experts=config.num_experts,
        experts_per_token=config.num_experts_per_tok,
        intermediate_size=config.moe_intermediate_size,
        norm_topk_prob=config.norm_topk_prob,
        dense_layers=tuple(sorted({*dense, *config.mlp_only_layers})),
    )
