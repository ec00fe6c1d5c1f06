"""Reads a tokenizer from a directory of Hugging Face's: tokenizer.json and the files round it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.json_file import read_json
from stafette.workers.weights.tokenizer import TokenizerSource

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def read_directory_tokenizer(directory: Path) -> TokenizerSource:
    """Return the directory's tokenizer. CheckpointError names the file that is wrong."""
    backend = _backend(directory / "tokenizer.json")
    config = _optional(directory / "tokenizer_config.json")
    special = _special_tokens(_optional(directory / "special_tokens_map.json") | config)
    return TokenizerSource(
        backend=backend,
        special_tokens=special,
        eos_token_ids=_ends(directory),
        chat_templates=_chat_templates(directory, config),
    )


def _backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        remedy = "is missing: only fast tokenizers are read; save one with transformers"
        raise CheckpointError("tokenizer.json", str(path), remedy)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # what `tokenizers` raises has no narrower type
        remedy = f"cannot be read: {error}; download it again"
        raise CheckpointError("tokenizer.json", str(path), remedy) from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Read the named tokens, each a string or an object with its content."""
    special = {}
    for name in _NAMED:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            special[name] = content
    return special


def _ends(directory: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        value = _optional(directory / name).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            return tuple(token for token in ids if isinstance(token, int))
    return ()


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Read the templates, wherever this version of Hugging Face's library put them."""
    templates = _named_templates(config.get("chat_template"))
    templates |= _named_templates(_optional(directory / "chat_template.json").get("chat_template"))
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = path.read_text(encoding="utf-8")
    single = directory / "chat_template.jinja"
    if single.is_file():
        templates["default"] = single.read_text(encoding="utf-8")
    return templates


def _named_templates(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        return {str(name): str(template) for name, template in value.items()}
    try:
        return {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError):
        remedy = "must be a template, or a list of objects with name and template"
        raise CheckpointError("chat_template", value, remedy) from None
