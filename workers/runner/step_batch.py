"""One step's inputs as the model reads them: tensors on its device."""

from dataclasses import dataclass

import torch

from stafette.workers.attention.backend import AttentionMetadata


@dataclass(slots=True)
class StepBatch:
    """A step on the device. Its shapes depend on the numbers of tokens and sequences alone."""

    token_ids: torch.Tensor  # int32 [tokens]
    positions: torch.Tensor  # int32 [tokens]
    meta: AttentionMetadata
