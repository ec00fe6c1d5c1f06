"""Text put together token by token is the text of all tokens at once."""

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from stafette.workers.errors import CheckpointError, RequestError
from stafette.workers.weights.opening import open_tokenizer
from stafette.workers.weights.tokenizer import IncrementalDetokenizer, Tokenizer, TokenizerSource

QUICK = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
REPLACEMENT = "\ufffd"


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return open_tokenizer("smollm2")


def sentence_piece(*steps: decoders.Decoder) -> Tokenizer:
    """A vocabulary of a few words and all bytes."""
    words = ["<unk>", "<s>", "</s>", "▁a", "▁", "a", "b", "▁▁", "é", "中"]
    tokens = words + [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(list(steps)) if steps else decoders.Metaspace()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return Tokenizer(TokenizerSource(backend=backend))


REPLACE, FUSE = decoders.Replace("▁", " "), decoders.Fuse()
STRIP = decoders.Strip(content=" ", left=1)


@pytest.fixture(scope="module")
def llama2() -> Tokenizer:
    return sentence_piece(REPLACE, decoders.ByteFallback(), FUSE, STRIP)


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: list[int], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip)
    return [detokenizer.push([token]) for token in ids] + [detokenizer.finish()]


@QUICK
@given(ids=st.lists(st.integers(0, 49151), max_size=40), skip=st.booleans())
def test_pieces_of_any_tokens_make_up_the_whole(smollm2, ids, skip):
    assert "".join(pieces(smollm2, ids, [], skip)) == smollm2.decode(ids, skip)


@QUICK
@given(prompt=UNICODE, answer=UNICODE)
def test_pieces_of_a_text_make_up_the_text(smollm2, prompt, answer):
    ids = smollm2.encode(answer)
    text = smollm2.decode(ids, False)  # `answer`, but for rare bytes that have no token

    answered = pieces(smollm2, ids, smollm2.encode(prompt), skip=False)

    assert "".join(answered) == text
    assert all(REPLACEMENT not in piece for piece in answered) or REPLACEMENT in text


@QUICK
@given(ids=st.lists(st.integers(0, 49151), max_size=30), cuts=st.data())
def test_it_does_not_matter_how_many_tokens_come_at_once(smollm2, ids, cuts):
    cut = cuts.draw(st.integers(0, len(ids)))
    detokenizer = IncrementalDetokenizer(smollm2, [], skip_special_tokens=True)

    text = detokenizer.push(ids[:cut]) + detokenizer.push(ids[cut:]) + detokenizer.finish()

    assert text == smollm2.decode(ids)


def test_character_of_several_tokens_comes_with_its_last(smollm2):
    ids = smollm2.encode("👩")
    assert len(ids) > 1

    *earlier, last, rest = pieces(smollm2, ids, [], skip=False)

    assert (earlier, last, rest) == ([""] * (len(ids) - 1), "👩", "")


def test_half_a_character_at_the_end_is_replaced(smollm2):
    ids = smollm2.encode("👩")

    assert pieces(smollm2, ids[:-1], [], skip=False)[-1] == REPLACEMENT


def test_no_more_than_one_character_is_ever_held_back(smollm2):
    broken = [token for token in range(300) if smollm2.token_bytes[token] == b"\xf0"]
    detokenizer = IncrementalDetokenizer(smollm2, [], skip_special_tokens=True)

    text = detokenizer.push(broken * 1000)

    assert text == REPLACEMENT * 999


def test_special_tokens_are_shown_only_when_asked(smollm2):
    ids = smollm2.encode("a<|im_end|>b")

    assert "".join(pieces(smollm2, ids, [], skip=True)) == "ab"
    assert "".join(pieces(smollm2, ids, [], skip=False)) == "a<|im_end|>b"


@QUICK
@given(ids=st.lists(st.integers(0, 9), max_size=12), skip=st.booleans())
def test_pieces_of_sentence_piece_tokens_make_up_the_whole(llama2, ids, skip):
    assert "".join(pieces(llama2, ids, [], skip)) == llama2.decode(ids, skip)


@QUICK
@given(text=UNICODE)
def test_byte_tokens_are_joined_to_characters(llama2, text):
    ids = llama2.encode(text)

    assert "".join(pieces(llama2, ids, [], skip=True)) == llama2.decode(ids)


def test_answer_keeps_its_space_after_a_prompt(llama2):
    prompt, answer = llama2.encode("a"), llama2.encode("a")
    assert answer == [3]

    assert pieces(llama2, answer, prompt, skip=True) == [" a", ""]
    assert pieces(llama2, answer, [1], skip=True) == ["a", ""]  # nothing is shown of <s>


def test_metaspace_drops_the_space_that_it_put_first():
    tokenizer = sentence_piece()

    ids = tokenizer.encode("a a")

    assert "".join(pieces(tokenizer, ids, [], skip=True)) == tokenizer.decode(ids) == "a a"


def test_unknown_decoder_is_refused():
    with pytest.raises(CheckpointError, match="supported are ByteLevel"):
        sentence_piece(decoders.WordPiece())


def test_token_without_meaning_adds_nothing(smollm2):
    assert smollm2.token_bytes[60_000] == b""


@pytest.mark.parametrize("text", ["\ud800", b"bytes", None, 7])
def test_what_is_not_text_is_refused(smollm2, text):
    with pytest.raises(RequestError, match="valid Unicode") as caught:
        smollm2.encode(text)

    assert caught.value.field == "prompt"
