"""However an answer is cut into deltas, the same is read."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stafette.platform.frontend.parsing.answer import AnswerParser
from stafette.platform.frontend.parsing.forced import NamedParser, RequiredParser
from stafette.platform.frontend.parsing.reasoning import ThinkParser
from stafette.platform.frontend.parsing.registry import TOOL_PARSERS

FRAGMENTS = [
    '{"name": "add", "arguments": {}, "id": "i"}',
    '{"id": "i", "name": "add", "parameters": {}, "why": 1}',
    "Hello", " ", "\n", "<", "</", "{", "}", "[", "]", "(", ")", ",", ";", ":", '"', "\\", "é😀",
    "<b>", "<tool_call>", "</tool_call>", "<tool", "_call>", "[TOOL_CALLS]", "[ARGS]",
    "[CALL_ID]", "abc123XYZ", "[TOOL", "<|python_tag|>", "<function=add>", "<function=",
    "</function>", "<parameter=a>", "5", "</parameter>", "<parameter=city>", "null", "true",
    '"name"', '"arguments"', '"parameters"', '"add"',
    '{"name": "add", "arguments": {"a": 1, "b": 2}}',
    '{"name": "add", "parameters": {"a": "}]"}}', '{"arguments": {"a": 1}, "name": "add"}',
    '{"name": "add", "arguments": "{}"}', "add", "weather", "add(a=1, b=[2])",
    "weather(city='Pa(ris')", "[add(", "a=1", "'", "<think>", "</think>", "add{}",
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
jsons = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
cases = settings(max_examples=40, deadline=None)
arguments = st.dictionaries(st.text(max_size=5), jsons, max_size=3)


def parsers(tools):
    def numbers():
        return map(str, itertools.count()).__next__

    made = {name: lambda kind=kind: kind(tools, numbers()) for name, kind in TOOL_PARSERS.items()}
    made["required"] = lambda: RequiredParser(tools, numbers())
    made["named"] = lambda: NamedParser(tools, "add", numbers())
    return made


@pytest.mark.parametrize("name", [*TOOL_PARSERS, "required", "named"])
@cases
@given(data=st.data(), text=texts)
def test_any_text_is_read_the_same_however_it_is_cut(parsing, name, data, text):
    make = parsers(parsing.tools)[name]
    parts = parsing.cuts(data, text)

    assert parsing.Reading(make(), parts).whole == parsing.Reading(make(), [text]).whole


@pytest.mark.parametrize("name", ["hermes", "qwen", "mistral", "llama3_json", "required"])
@cases
@given(data=st.data(), value=arguments)
def test_arguments_of_any_kind_arrive_as_they_were_said(parsing, name, data, value):
    said = json.dumps({"name": "add", "arguments": value}, ensure_ascii=data.draw(st.booleans()))
    forms = {"mistral": "[TOOL_CALLS][{}]", "llama3_json": "{}", "required": "[{}]"}
    text = forms.get(name, "<tool_call>\n{}\n</tool_call>").replace("{}", said, 1)

    read = parsing.Reading(parsers(parsing.tools)[name](), parsing.cuts(data, text))

    ((tool, heard),) = read.calls
    assert (tool, json.loads(heard), read.text) == ("add", value, "")


@cases
@given(data=st.data(), value=arguments)
def test_a_newer_mistrals_arguments_arrive_as_they_were_said(parsing, data, value):
    text = f"[TOOL_CALLS]add[ARGS]{json.dumps(value)}"

    read = parsing.Reading(parsers(parsing.tools)["mistral"](), parsing.cuts(data, text))

    ((tool, heard),) = read.calls
    assert (tool, json.loads(heard), read.text) == ("add", value, "")


@cases
@given(data=st.data(), value=st.dictionaries(st.sampled_from(["a", "bc"]), jsons))
def test_a_pythonic_calls_arguments_arrive_as_they_were_said(parsing, data, value):
    words = ", ".join(f"{name}={item!r}" for name, item in value.items())

    read = parsing.Reading(
        parsers(parsing.tools)["pythonic"](), parsing.cuts(data, f"[add({words})]")
    )

    ((tool, heard),) = read.calls
    assert (tool, json.loads(heard), read.text) == ("add", value, "")


@cases
@given(data=st.data(), city=st.text().filter(lambda text: "</parameter>" not in text))
def test_text_between_qwens_tags_arrives_as_it_was_said(parsing, data, city):
    tags = f"<parameter=city>\n{city}\n</parameter>\n<parameter=days>\n3\n</parameter>"
    text = f"<tool_call>\n<function=weather>\n{tags}\n</function>\n</tool_call>"

    read = parsing.Reading(parsers(parsing.tools)["qwen"](), parsing.cuts(data, text))

    ((_, heard),) = read.calls
    assert json.loads(heard) == {"city": city, "days": 3}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("tools", [None, "hermes"])
@cases
@given(data=st.data(), text=texts)
def test_reasoning_is_parted_the_same_however_it_is_cut(parsing, inside, tools, data, text):
    def make():
        reader = parsers(parsing.tools)[tools]() if tools else None
        return AnswerParser(ThinkParser(inside), reader)

    parts = parsing.cuts(data, text)

    assert parsing.Reading(make(), parts).whole == parsing.Reading(make(), [text]).whole
