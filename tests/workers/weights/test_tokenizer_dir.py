"""A directory's tokenizer behaves as transformers' own, whichever version wrote the files."""

import json

import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from stafette.workers.errors import CheckpointError
from stafette.workers.weights.opening import open_tokenizer

SAMPLES = ["", "Hello  world", "<s>a</s>b", "zoë <tool> 12", " leading"]
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHAT = [{"role": "user", "content": "hi"}]


def backend(with_bos: bool = True) -> tokenizers.Tokenizer:
    """Bytes only, four special tokens, and a first token when asked."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "</s>", "<eot>")])
    made.add_tokens([AddedToken("<tool>", special=False)])
    if with_bos:
        start = made.token_to_id("<s>")
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", start)]
        )
    return made


@pytest.fixture
def folder(tmp_path):
    backend().save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    return tmp_path


def write(folder, **config) -> None:
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_tokens_and_text_are_those_of_transformers(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    ours = open_tokenizer(str(folder))

    for text in SAMPLES:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.encode(text, False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, False) == theirs.decode(ids)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))


@pytest.mark.parametrize("with_bos", [True, False])
@pytest.mark.parametrize("ends", [{}, {"add_bos_token": True}, {"add_eos_token": True}])
def test_tokenizer_json_alone_decides_on_the_first_token_as_in_transformers(
    tmp_path, with_bos, ends
):
    backend(with_bos).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, bos_token="<s>", eos_token="</s>", **ends)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)

    ours = open_tokenizer(str(tmp_path))

    assert ours.encode("a") == theirs("a").input_ids


def test_tokens_may_be_written_as_objects(folder):
    write(folder, bos_token={"content": "<s>", "special": True}, eos_token={"content": "<eot>"})

    ours = open_tokenizer(str(folder))

    assert ours.special_tokens == {"bos_token": "<s>", "eos_token": "<eot>"}


def test_older_map_of_special_tokens_is_read(folder):
    write(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<eot>"}))

    ours = open_tokenizer(str(folder))

    assert ours.eos_token_ids == (ours.backend.token_to_id("<eot>"),)


def test_answers_end_at_every_token_that_generation_config_lists(folder):
    ours = open_tokenizer(str(folder))
    eos, eot = ours.backend.token_to_id("</s>"), ours.backend.token_to_id("<eot>")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [eot, eos]}))

    assert open_tokenizer(str(folder)).eos_token_ids == (eos, eot)


def test_padding_and_truncation_of_the_file_are_ignored(folder):
    cut = backend()
    cut.enable_truncation(3)
    cut.enable_padding(length=50)
    cut.save(str(folder / "tokenizer.json"))

    assert len(open_tokenizer(str(folder)).encode("hello")) == 6


@pytest.mark.parametrize(
    "place",
    ["tokenizer_config", "list of named", "chat_template.json", "chat_template.jinja"],
)
def test_template_is_found_wherever_it_was_put(folder, place):
    if place == "tokenizer_config":
        write(folder, bos_token="<s>", chat_template=TEMPLATE)
    elif place == "list of named":
        named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "t"}]
        write(folder, bos_token="<s>", chat_template=named)
    elif place == "chat_template.json":
        write(folder, bos_token="<s>")
        (folder / place).write_text(json.dumps({"chat_template": TEMPLATE}))
    else:
        write(folder, bos_token="<s>", chat_template="an older one")
        (folder / place).write_text(TEMPLATE)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)

    ours = open_tokenizer(str(folder))

    expected = "<s>user: hi\n"
    assert ours.apply_chat_template(CHAT) == expected
    if place != "chat_template.json":  # which transformers reads for processors only
        assert theirs.apply_chat_template(CHAT, tokenize=False) == expected


def test_template_for_tools_lies_in_a_folder_of_its_own(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools | length }}")

    ours = open_tokenizer(str(folder))

    assert ours.apply_chat_template(CHAT, tools=[{}, {}]) == "2"
    assert ours.apply_chat_template(CHAT) == "<s>user: hi\n"


def test_model_without_a_template_has_none(folder):
    write(folder)

    assert not open_tokenizer(str(folder)).has_chat_template


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1.0"}', "nonsense"])
def test_broken_tokenizer_is_named(folder, text):
    (folder / "tokenizer.json").write_text(text)

    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        open_tokenizer(str(folder))

    assert caught.value.field == "tokenizer.json"


def test_missing_tokenizer_says_how_to_get_one(tmp_path):
    (tmp_path / "tokenizer.model").touch()

    with pytest.raises(CheckpointError, match="save one with transformers") as caught:
        open_tokenizer(str(tmp_path))

    assert caught.value.field == "tokenizer.json"


@pytest.mark.parametrize("value", [7, [7], [{"name": "x"}]])
def test_template_of_a_wrong_form_is_named(folder, value):
    write(folder, chat_template=value)

    with pytest.raises(CheckpointError) as caught:
        open_tokenizer(str(folder))

    assert caught.value.field == "chat_template"


def test_tokenizer_of_another_model_may_be_named(folder):
    assert open_tokenizer("smollm2", str(folder)).encode("") == [256]
