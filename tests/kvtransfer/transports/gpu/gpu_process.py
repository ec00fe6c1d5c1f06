"""A process that offers, or fills, memory of a GPU: see contract/owner_process.py.

python gpu_process.py '{"name": ..., "transport": ..., "memory": "cuda:0", ...}'
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch

BASE = Path(__file__).parents[2] / "contract" / "owner_process.py"

_spec = importlib.util.spec_from_file_location("owner_process", BASE)
base = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(base)
on_host = base.memory


class GpuPool:
    """A tensor that is filled and read as an array of numpy."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return self._tensor.numel()

    def __setitem__(self, part: slice, value: np.ndarray) -> None:
        self._tensor[part] = torch.from_numpy(np.array(value, np.uint8)).to(self._tensor.device)
        torch.cuda.synchronize(self._tensor.device)  # complete before it is granted

    def __getitem__(self, part: slice) -> np.ndarray:
        return self._tensor[part].cpu().numpy()


def memory(kind: str, nbytes: int) -> tuple[object, object]:
    """Return (what is registered, its bytes)."""
    if not kind.startswith("cuda"):
        return on_host(kind, nbytes)
    tensor = torch.zeros(nbytes, dtype=torch.uint8, device=kind)
    return tensor, GpuPool(tensor)


if __name__ == "__main__":
    base.memory = memory
    base.main()
