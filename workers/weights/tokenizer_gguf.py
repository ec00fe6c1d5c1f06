"""Builds the tokenizer that a GGUF file's metadata describes."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.gguf import GgufFile, GgufTexts
from stafette.workers.weights.gguf_spec import eos_token_ids
from stafette.workers.weights.tokenizer import TokenizerSource

_CONTROL, _USER_DEFINED = 3, 4  # token types
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>")  # end an answer, metadata or not

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut before merging, under the names that tokenizer.ggml.pre has for it.
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "tekken": _TEKKEN,
}
_GPT2 = ("default", "gpt-2", "gpt2")
_ONE_DIGIT = ("smollm", "starcoder", "refact", "command-r", "codeshell")  # GPT-2, digits apart
_LLAMA3_NAMES = tuple(name for name, split in _SPLITS.items() if split is _LLAMA3)


def read_gguf_tokenizer(file: GgufFile) -> TokenizerSource:
    """Return the file's tokenizer. CheckpointError when it has none, or one of an unknown kind."""
    metadata = file.metadata
    tokens = _texts(metadata, "tokenizer.ggml.tokens")
    vocabulary = dict(zip(tokens, range(len(tokens)), strict=True))
    backend = _backend(metadata, tokens, vocabulary)
    _add_tokens(backend, metadata, tokens)
    special = _special_tokens(metadata, tokens)
    backend.post_processor = _post_processor(metadata, special, vocabulary)
    ends = [vocabulary[name] for name in _TURN_ENDS if name in vocabulary]
    return TokenizerSource(
        backend=backend,
        special_tokens=special,
        eos_token_ids=(*eos_token_ids(metadata), *ends),
        chat_templates=_chat_templates(metadata),
    )


def _backend(
    metadata: Mapping[str, Any], tokens: Sequence[str], vocabulary: dict[str, int]
) -> tokenizers.Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            return _byte_level(metadata, vocabulary)
        if kind == "llama":
            return _sentence_piece(metadata, tokens, vocabulary)
    except Exception as error:  # all that `tokenizers` raises for bad merges
        if isinstance(error, CheckpointError):
            raise
        remedy = f"does not fit its tokens: {error}"
        raise CheckpointError("tokenizer.ggml.merges", kind, remedy) from error
    remedy = "is not supported; supported are gpt2 and llama: name a tokenizer directory instead"
    raise CheckpointError("tokenizer.ggml.model", kind, remedy)


def _byte_level(metadata: Mapping[str, Any], vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    name = _pre_name(metadata)
    merges = [_pair(merge) for merge in _texts(metadata, "tokenizer.ggml.merges")]
    whole_words_first = name in _LLAMA3_NAMES or name == "tekken"
    model = models.BPE(vocabulary, merges, ignore_merges=whole_words_first)
    backend = tokenizers.Tokenizer(model)
    if _SPLITS.get(name) is _QWEN2:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(name)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_name(metadata: Mapping[str, Any]) -> str:
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:  # files older than the key
        return "qwen2" if "qwen" in str(metadata.get("general.architecture")) else "default"
    return str(name)


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _GPT2:
        return words
    if name in _ONE_DIGIT:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    if name in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[name]), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, plain])
    known = ", ".join([*_GPT2, *_ONE_DIGIT, *_SPLITS])
    remedy = f"is not supported; supported are {known}: name a tokenizer directory instead"
    raise CheckpointError("tokenizer.ggml.pre", name, remedy)


def _sentence_piece(
    metadata: Mapping[str, Any], tokens: Sequence[str], vocabulary: dict[str, int]
) -> tokenizers.Tokenizer:
    unknown = _token(metadata, tokens, "unknown_token_id")
    if "tokenizer.ggml.merges" in metadata:
        merges = [_pair(merge) for merge in _texts(metadata, "tokenizer.ggml.merges")]
    else:
        scores = _numbers(metadata, "tokenizer.ggml.scores")
        merges = _merges_from_scores(tokens, vocabulary, scores)
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prefixed = _flag(metadata, "add_space_prefix", True)
    scheme = "first" if prefixed else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        steps + [decoders.Strip(content=" ", left=1)] if prefixed else steps
    )
    return backend


def _merges_from_scores(
    tokens: Sequence[str], vocabulary: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return every way to make a token of two, the best token's first."""
    if len(scores) != len(tokens):
        remedy = f"must hold one score for each of the {len(tokens)} tokens"
        raise CheckpointError("tokenizer.ggml.scores", len(scores), remedy)
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, -len(left), -len(right), left, right))
    merges.sort(key=itemgetter(0, 1, 2))
    return [(left, right) for *_, left, right in merges]


def _add_tokens(
    backend: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str]
) -> None:
    """Keep control tokens whole in any text, and out of what is decoded."""
    kinds = _numbers(metadata, "tokenizer.ggml.token_type")
    control, defined = [], []
    for token, kind in zip(tokens, kinds, strict=False):
        if kind == _CONTROL:
            control.append(AddedToken(token, normalized=False, special=True))
        elif kind == _USER_DEFINED:
            defined.append(AddedToken(token, normalized=False, special=False))
    backend.add_special_tokens(control)
    backend.add_tokens(defined)


def _special_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    named = {name: _token(metadata, tokens, key) for name, key in _SPECIAL.items()}
    return {name: token for name, token in named.items() if token is not None}


def _post_processor(
    metadata: Mapping[str, Any], special: Mapping[str, str], vocabulary: Mapping[str, int]
) -> processors.PostProcessor:
    kind, name = metadata.get("tokenizer.ggml.model"), _pre_name(metadata)
    usually = kind == "llama" or name in _LLAMA3_NAMES
    parts = ["$A"]
    if _flag(metadata, "add_bos_token", usually) and "bos_token" in special:
        parts.insert(0, special["bos_token"])
    if _flag(metadata, "add_eos_token", False) and "eos_token" in special:
        parts.append(special["eos_token"])
    known = [(token, vocabulary[token]) for token in parts if token != "$A"]
    return processors.TemplateProcessing(single=parts, special_tokens=known)


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    templates = {}
    for key, value in metadata.items():
        if key == prefix:
            templates["default"] = str(value)
        elif key.startswith(prefix + "."):
            templates[key[len(prefix) + 1 :]] = str(value)
    return templates


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, GgufTexts):
        remedy = "is missing from the file: name a tokenizer directory instead"
        raise CheckpointError(key, value, remedy)
    return value.to_list()


def _numbers(metadata: Mapping[str, Any], key: str) -> list[float]:
    """Return an array of numbers; none when the file has no such key."""
    value = metadata.get(key)
    if value is None:
        return []
    if not isinstance(value, np.ndarray):
        raise CheckpointError(key, value, "must be an array of numbers")
    numbers: list[float] = value.tolist()
    return numbers


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool | int):
        raise CheckpointError(f"tokenizer.ggml.{key}", value, "must be true or false")
    return bool(value)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _token(metadata: Mapping[str, Any], tokens: Sequence[str], key: str) -> str | None:
    token = metadata.get(f"tokenizer.ggml.{key}")
    if token is None:
        return None
    if not isinstance(token, int) or not 0 <= token < len(tokens):
        remedy = f"must be one of the {len(tokens)} tokens"
        raise CheckpointError(f"tokenizer.ggml.{key}", token, remedy)
    return tokens[token]
