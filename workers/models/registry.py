"""Which class answers for which architecture."""

import torch

from stafette.workers.errors import CheckpointError
from stafette.workers.models.decoder import Decoder
from stafette.workers.models.llama import Llama
from stafette.workers.models.loading import WeightLoader
from stafette.workers.models.mistral import Mistral
from stafette.workers.models.qwen2 import Qwen2
from stafette.workers.models.qwen3 import Qwen3
from stafette.workers.models.qwen3_moe import Qwen3Moe
from stafette.workers.models.sharding import SOLO, TensorParallel, check_shardable
from stafette.workers.weights.checkpoint import Checkpoint

MODELS: dict[str, type[Decoder]] = {
    "llama": Llama,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
}


def build_model(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, tp: TensorParallel = SOLO
) -> Decoder:
    """Load one rank's share of the model onto its device."""
    name = checkpoint.spec.architecture
    if name not in MODELS:
        raise CheckpointError("architecture", name, f"supported are {', '.join(MODELS)}")
    check_shardable(checkpoint.spec, tp.size)
    with torch.no_grad():
        return MODELS[name](WeightLoader(checkpoint, dtype, device, tp))
