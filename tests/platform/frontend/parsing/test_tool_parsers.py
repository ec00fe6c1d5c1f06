"""What each form of calls comes to."""

import json

import pytest

from stafette.platform.frontend.parsing.answer import AnswerParser
from stafette.platform.frontend.parsing.forced import NamedParser, RequiredParser
from stafette.platform.frontend.parsing.hermes import HermesParser
from stafette.platform.frontend.parsing.llama3_json import Llama3JsonParser
from stafette.platform.frontend.parsing.mistral import MistralParser
from stafette.platform.frontend.parsing.pieces import CallArguments, CallBegin, Text
from stafette.platform.frontend.parsing.pythonic import PythonicParser
from stafette.platform.frontend.parsing.qwen import QwenParser

ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
ADDED = ("add", '{"a": 1, "b": 2}')
TAGS = (
    "<function=weather>\n<parameter=city>\nParis\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>"
)


@pytest.mark.parametrize(
    ("kind", "text", "calls"),
    [
        (HermesParser, f"<tool_call>\n{ADD}\n</tool_call>", [ADDED]),
        (HermesParser, f"<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>", [ADDED] * 2),
        (HermesParser, f"<tool_call>{ADD}", [ADDED]),  # the model forgot the end
        (HermesParser, '<tool_call>{"name": "f"}</tool_call>', [("f", "{}")]),
        (HermesParser, '<tool_call>{"arguments": null, "name": "f"}</tool_call>', [("f", "{}")]),
        (
            HermesParser,
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}',
            [("f", '{"a": 1}')],
        ),
        (QwenParser, f"<tool_call>\n{ADD}\n</tool_call>", [ADDED]),
        (
            QwenParser,
            f"<tool_call>\n{TAGS}\n</tool_call>",
            [("weather", '{"city": "Paris", "days": 3}')],
        ),
        (QwenParser, "<tool_call><function=f></function></tool_call>", [("f", "{}")]),
        (Llama3JsonParser, ADD.replace("arguments", "parameters"), [ADDED]),
        (Llama3JsonParser, f"<|python_tag|>{ADD}; {ADD}", [ADDED] * 2),
        (MistralParser, f"[TOOL_CALLS][{ADD}, {ADD}]", [ADDED] * 2),
        (MistralParser, '[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2}', [ADDED]),
        (
            MistralParser,
            '[TOOL_CALLS]add{"a": 1}[TOOL_CALLS]add{}',
            [("add", '{"a": 1}'), ("add", "{}")],
        ),
        (PythonicParser, "[add(a=1, b=2), add(a=-1)]", [ADDED, ("add", '{"a": -1}')]),
        (
            PythonicParser,
            "[weather(city='Paris', days=None)]",
            [("weather", '{"city": "Paris", "days": null}')],
        ),
        (
            PythonicParser,
            '[weather(city="a]b", days=true)]',
            [("weather", '{"city": "a]b", "days": true}')],
        ),
        (RequiredParser, f"[{ADD}, {ADD}]", [ADDED] * 2),
    ],
)
def test_calls_are_found_and_no_text_is_left(parsing, kind, text, calls):
    read = parsing.read(kind(parsing.tools), text)

    assert (read.calls, read.text) == (calls, "")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (HermesParser, "a <b> c <tool> {} [1]"),
        (HermesParser, "<tool_call>not JSON</tool_call>"),
        (HermesParser, "ends like a call <tool_"),
        (QwenParser, "<tool_call><nonsense></tool_call>"),
        (Llama3JsonParser, '{"city": "Paris"}'),  # JSON that the user asked for
        (Llama3JsonParser, '{"name": "Bob", "age": 3}'),
        (Llama3JsonParser, '{"name": "add"}'),
        (MistralParser, "[TOOL_CALLS]what is this?"),
        (PythonicParser, "[1, 2, 3]"),
        (PythonicParser, "[unknown(a=1)]"),
        (PythonicParser, "[add(1, 2)]"),
    ],
)
def test_what_is_no_call_stays_text(parsing, kind, text):
    read = parsing.read(kind(parsing.tools), text)

    assert (read.calls, read.text) == ([], text)


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        (HermesParser, f"<tool_call>{ADD}</tool_call>"),
        (QwenParser, f"<tool_call>{TAGS}</tool_call>"),
        (MistralParser, f"[TOOL_CALLS][{ADD}]"),
        (PythonicParser, "[add(a=1, b=2)]"),
        (RequiredParser, f"[{ADD}]"),
    ],
)
def test_a_call_that_is_cut_off_anywhere_never_shows_its_markup(parsing, kind, whole):
    marks = len(whole) // 3  # from here on nobody could take it for text
    for end in range(marks, len(whole)):
        assert parsing.read(kind(parsing.tools), whole[:end]).text == ""


def test_arguments_arrive_while_the_call_is_still_being_said(parsing):
    parser = HermesParser(parsing.tools)

    begun = parser.feed('<tool_call>{"name": "add", "arguments": {"a": ')

    assert [type(piece) for piece in begun] == [CallBegin, CallArguments]
    assert begun[1].text == '{"a": '
    assert [piece.text for piece in parser.feed("1}")] == ["1}"]


def test_text_before_calls_is_shown_at_once_and_without_its_last_white_space(parsing):
    parser = HermesParser(parsing.tools)

    assert [piece.text for piece in parser.feed("Let me see.\n\n<tool_")] == ["Let me see."]
    assert [type(piece) for piece in parser.feed(f"call>{ADD}</tool_call>\n")] == [
        CallBegin,
        CallArguments,
    ]
    assert parser.finish() == []


def test_text_without_calls_keeps_its_white_space(parsing):
    assert parsing.read(HermesParser(parsing.tools), " a \n b \n").text == " a \n b \n"


def test_bare_line_breaks_in_a_string_become_json(parsing):
    said = '<tool_call>{"name": "weather", "arguments": {"city": "a\nb"}}</tool_call>'

    ((_, heard),) = parsing.read(HermesParser(parsing.tools), said).calls

    assert json.loads(heard) == {"city": "a\nb"}


def test_markup_ends_arguments_that_break_off(parsing):
    said = (
        f'<tool_call>{{"name": "add", "arguments": {{"a": 1</tool_call><tool_call>{ADD}</tool_call>'
    )

    read = parsing.read(HermesParser(parsing.tools), said)

    assert read.calls == [("add", '{"a": 1'), ADDED]


def test_the_named_tools_arguments_are_the_whole_answer(parsing):
    read = parsing.read(NamedParser(parsing.tools, "add"), '{"a": 1}')

    assert read.calls == [("add", '{"a": 1}')]


def test_with_one_call_only_the_first_is_heard(parsing):
    inner = HermesParser(parsing.tools)
    two = f"<tool_call>{ADD}</tool_call><tool_call>{ADD}</tool_call>"

    read = parsing.read(AnswerParser(tools=inner, one_call=True), two)

    assert read.calls == [ADDED]


def test_mistrals_ids_are_kept_or_made_as_its_templates_want_them(parsing):
    own = '[TOOL_CALLS][{"id": "abcdefghi", "name": "add", "arguments": {}}]'

    assert parsing.read(MistralParser(parsing.tools), own).ids == ["abcdefghi"]
    (made,) = parsing.read(MistralParser(parsing.tools), f"[TOOL_CALLS][{ADD}]").ids
    assert len(made) == 9
    assert made.isalnum()


def test_nesting_without_end_is_no_crash(parsing):
    deep = "[" * 100_000

    for kind in (HermesParser, Llama3JsonParser, PythonicParser):
        parsing.Reading(kind(parsing.tools), [f'{{"name": {deep}'])
        parsing.Reading(kind(parsing.tools), [f"[add(a={deep}{']' * 100_000})]"])


def test_pieces_between_two_calls_are_text(parsing):
    said = f"<tool_call>{ADD}</tool_call>\nand <tool_call>{ADD}</tool_call>"

    pieces = parsing.Reading(HermesParser(parsing.tools), [said]).said

    assert [type(piece) for piece in pieces if not isinstance(piece, CallArguments)] == [
        CallBegin,
        Text,
        CallBegin,
    ]
