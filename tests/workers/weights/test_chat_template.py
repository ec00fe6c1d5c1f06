"""Templates give the prompt that transformers gives, and can do nothing but write it."""

import re
from datetime import datetime
from enum import StrEnum

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from stafette.workers.errors import CheckpointError, RequestError
from stafette.workers.weights.chat_template import choose_template, render

CHATML = (
    "{%- if tools %}\n    {{- 'Tools: ' }}\n    {%- for tool in tools %}\n"
    "        {{- tool | tojson }}\n    {%- endfor %}\n{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'skip' %}{% continue %}{% endif %}\n"
    "    {{- '<|' + message['role'] + '|>' + message.content | trim }}\n"
    "    {%- if message.reasoning_content is defined %}"
    "[{{ message.reasoning_content }}]{% endif %}\n"
    "    {%- if message.tool_calls %}{{ message.tool_calls | tojson(indent=2) }}{% endif %}\n"
    "{%- endfor %}\n"
    "    {% if add_generation_prompt %}\n<|assistant|>\n    {% endif %}\n"
)
BLOCKS = "  {% if true %}\n  a\n  {% endif %}\n{% generation %}\n b\n{% endgeneration %}c"
STATE = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}{{ bos_token }}"
)
TALK = [
    {"role": "system", "content": " Be <kind> & 'brief' "},
    {"role": "skip", "content": "never seen"},
    {"role": "user", "content": "Grüße\n"},
    {"role": "assistant", "content": "", "reasoning": "hm", "tool_calls": [{"f": {"ü": [1, 2.5]}}]},
]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"a": None, "b": True}}}]


@pytest.mark.parametrize("template", [CHATML, BLOCKS, STATE])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompted", [True, False])
def test_prompt_is_that_of_transformers(template, tools, prompted):
    others = {"add_generation_prompt": prompted, "bos_token": "<s>", "enable_thinking": False}
    expected, _ = render_jinja_template([TALK], tools=tools, chat_template=template, **others)

    prompt = render(template, TALK, {"tools": tools, "documents": None} | others)

    assert prompt == expected[0]


def test_template_knows_the_date():
    prompt = render("{{ strftime_now('%Y') }}", TALK, {})

    assert prompt == str(datetime.now().year)


def test_refusal_of_the_template_reaches_the_client():
    template = "{{ raise_exception('Roles must alternate') }}"

    with pytest.raises(RequestError, match="Roles must alternate") as caught:
        render(template, TALK, {})

    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("{{ messages[0]['content'] + 'x' }}", [{"role": "user", "content": None}]),
        ("{{ messages[0]['content'] + 'x' }}", [{"role": "user"}]),
        ("{{ messages[3].content }}", [{"role": "user", "content": "x"}]),
        ("{{ messages[0].content }}", ["not an object"]),
        ("{{ 1 / 0 }}", []),
    ],
)
def test_messages_that_do_not_fit_are_the_clients_error(template, messages):
    with pytest.raises(RequestError) as caught:
        render(template, messages, {})

    assert caught.value.field == "messages"


def test_broken_template_is_the_models_error():
    with pytest.raises(CheckpointError, match="in line 2"):
        render("{% if x %}\n{% endfor %}", TALK, {})


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.items() }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) | list }}",
    ],
)
def test_template_is_confined(attack):
    with pytest.raises(RequestError):
        render(attack, TALK, {})


def test_template_sees_plain_data_only():
    class Role(StrEnum):
        USER = "user"

    class Secret:
        key = "hidden"

    message = {"role": Role.USER, "content": Secret(), "parts": ("a", "b")}

    prompt = render("{{ messages[0].role }} {{ messages[0].content }}", [message], {})

    assert prompt == "user <Secret>"


def test_tool_template_is_chosen_when_there_are_tools():
    templates = {"default": "d", "tool_use": "t"}

    assert choose_template(templates, has_tools=True) == "t"
    assert choose_template(templates, has_tools=False) == "d"
    assert choose_template({"default": "d"}, has_tools=True) == "d"


def test_model_without_a_template_says_so():
    with pytest.raises(RequestError, match=re.escape("send a plain prompt")):
        choose_template({}, has_tools=False)
