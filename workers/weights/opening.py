"""Opens a model by its name: a directory, a .gguf file, or the embedded model.

Each format's reader is imported when it is needed; opening a tokenizer alone imports no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stafette.workers.config import EMBEDDED_MODEL, Quantization
from stafette.workers.errors import CheckpointError, ConfigError
from stafette.workers.weights.embedded import embedded_model
from stafette.workers.weights.json_file import read_json
from stafette.workers.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from stafette.workers.weights.checkpoint import Checkpoint


def open_checkpoint(model: str, quantization: Quantization = "auto") -> "Checkpoint":
    """Return a checkpoint whose tensors are all there and of the right shape."""
    if quantization not in get_args(Quantization):
        remedy = f"must be one of {', '.join(get_args(Quantization))}"
        raise ConfigError("quantization", quantization, remedy)
    from stafette.workers.weights.shapes import verify_shapes

    path = resolve(model)
    checkpoint = _open_directory(path) if path.is_dir() else _open_gguf(path)
    if quantization not in ("auto", "none", checkpoint.quantization):
        remedy = f"the files of {model} hold {checkpoint.quantization}: leave it at auto"
        raise ConfigError("quantization", quantization, remedy)
    verify_shapes(checkpoint)
    if quantization != "none":
        return checkpoint
    from stafette.workers.weights.dense import DenseCheckpoint

    return DenseCheckpoint(checkpoint)


def open_tokenizer(model: str, tokenizer: str | None = None) -> Tokenizer:
    """Return the tokenizer named, or else the model's own."""
    path = resolve(tokenizer or model, "tokenizer" if tokenizer else "model")
    if path.is_dir():
        from stafette.workers.weights.tokenizer_dir import read_directory_tokenizer

        return Tokenizer(read_directory_tokenizer(path))
    from stafette.workers.weights.gguf import GgufFile
    from stafette.workers.weights.tokenizer_gguf import read_gguf_tokenizer

    return Tokenizer(read_gguf_tokenizer(GgufFile(path)))


def resolve(model: str, field: str = "model") -> Path:
    """Return the directory or .gguf file that a name stands for."""
    path = Path(model).expanduser()
    if path.is_dir():
        return _only_gguf(path) or path
    if path.is_file():
        return path
    if model == EMBEDDED_MODEL:
        return embedded_model()
    remedy = f"no such file or directory; name a directory, a .gguf file or {EMBEDDED_MODEL}"
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        remedy += f"; nothing is downloaded here: `hf download {model} --local-dir DIR` does that"
    raise CheckpointError(field, model, remedy)


def _only_gguf(directory: Path) -> Path | None:
    """Return the .gguf of a directory that holds one, and no config.json."""
    if (directory / "config.json").exists() or (directory / "tokenizer.json").exists():
        return None
    found = sorted(directory.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError("model", str(directory), f"holds several models, name one of {names}")
    return found[0] if found else None


def _open_gguf(path: Path) -> "Checkpoint":
    from stafette.workers.weights.gguf_checkpoint import GgufCheckpoint

    return GgufCheckpoint(path)


def _open_directory(directory: Path) -> "Checkpoint":
    from stafette.workers.weights.safetensors_dir import SafetensorsCheckpoint

    config = read_json(directory / "config.json")
    plain = SafetensorsCheckpoint(directory, config)
    quantized = _quantization_config(directory, config)
    if quantized is None:
        return plain
    usual = "awq" if "w_bit" in quantized else "gptq"
    method = str(quantized.get("quant_method", usual)).lower()
    if method == "gptq":
        from stafette.workers.weights.gptq import GptqCheckpoint

        return GptqCheckpoint(plain, quantized)
    if method == "awq":
        from stafette.workers.weights.awq import AwqCheckpoint

        return AwqCheckpoint(plain, quantized)
    remedy = "is not supported; supported are gptq and awq"
    raise CheckpointError("quantization_config quant_method", method, remedy)


def _quantization_config(directory: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return how the files were quantized; tools older than the key wrote a file of their own."""
    given = config.get("quantization_config")
    if isinstance(given, dict):
        return given
    for name in ("quantize_config.json", "quant_config.json"):  # GPTQ's, AWQ's
        if (directory / name).is_file():
            return read_json(directory / name)
    return None
