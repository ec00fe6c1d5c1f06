"""Writes a GGUF as a Hugging Face directory in bf16, for engines that read no GGUF.

python -m benchmarks.engine.gguf_to_hf MODEL.gguf DIRECTORY
"""

import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def convert(gguf: Path, directory: Path) -> None:
    """Write config.json last: its presence says that the directory is whole."""
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
    draft = directory / "draft"
    _dense(gguf).save_pretrained(draft)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == "config.json"):
        path.rename(directory / path.name)
    draft.rmdir()


def _dense(gguf: Path) -> PreTrainedModel:
    """Return the model afresh, in bf16: one that was read from a GGUF refuses to be saved."""
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.bfloat16
    )
    model.load_state_dict(read.state_dict())
    return model


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
