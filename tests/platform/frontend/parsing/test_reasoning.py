"""A model's thoughts are parted from its answer."""

import pytest

from stafette.platform.frontend.errors import InvalidSetting
from stafette.platform.frontend.parsing.hermes import HermesParser
from stafette.platform.frontend.parsing.mistral import MistralParser
from stafette.platform.frontend.parsing.qwen import QwenParser
from stafette.platform.frontend.parsing.reasoning import ThinkParser
from stafette.platform.frontend.parsing.registry import reasoning_parser, tool_parser


@pytest.mark.parametrize(
    ("inside", "text", "thought", "answer"),
    [
        (False, "<think>\nLet me see.\n</think>\n\nParis.", "Let me see.", "Paris."),
        (False, "Paris.", "", "Paris."),
        (False, "<think>\n\n</think>\n\nParis.", "", "Paris."),
        (False, "a <think> b", "", "a <think> b"),  # not at the beginning
        (False, "<think>cut off", "cut off", ""),
        (True, "Let me see.</think>Paris.", "Let me see.", "Paris."),
        (True, "<think>Let me see.</think>Paris.", "Let me see.", "Paris."),
        (True, "never answers", "never answers", ""),
    ],
)
def test_thought_and_answer(parsing, inside, text, thought, answer):
    read = parsing.read(ThinkParser(inside), text)

    assert (read.reasoning, read.text) == (thought, answer)


def test_a_parser_knows_whether_the_model_thinks():
    parser = ThinkParser(inside=False)

    states = []
    for part in ("<think>", "a", "</think>", "b"):
        parser.feed(part)
        states.append(parser.thinking)

    assert states == [True, True, False, False]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ '<tool_call>' }}", HermesParser),
        ("<tool_call>\n<function=...>", QwenParser),
        ("[AVAILABLE_TOOLS]", MistralParser),
        ("no tools at all", HermesParser),
    ],
)
def test_auto_takes_the_form_that_the_template_has(template, kind):
    assert tool_parser("auto", template) is kind


def test_auto_takes_the_reasoning_that_the_template_has():
    assert reasoning_parser("auto", "nothing") is None
    assert reasoning_parser("auto", "{% if enable_thinking %}<think>") == "qwen3"
    assert reasoning_parser("auto", "<think>") == "deepseek_r1"


@pytest.mark.parametrize(("find", "known"), [(tool_parser, "hermes"), (reasoning_parser, "qwen3")])
def test_an_unknown_name_lists_the_known_ones(find, known):
    with pytest.raises(InvalidSetting, match=known):
        find("nonsense", "")

    assert find("none", "<think><tool_call>") is None
