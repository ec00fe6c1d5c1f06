"""Feeds texts to parsers, cut in any way, and puts together what they say."""

from itertools import pairwise

import pytest
from hypothesis import strategies as st

from stafette.platform.frontend.answering.chat import SpokenMessage

TOOLS = {
    "add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    "weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"]}},
    },
}


class Reading:
    """What came of a text."""

    def __init__(self, parser, parts):
        self.said = []  # the pieces, as they came
        message = SpokenMessage()
        for part in parts:
            self.said += parser.feed(part)
        self.before_end = len(self.said)
        self.said += parser.finish()
        message.add(self.said)
        self.text, self.reasoning = message.text, message.reasoning
        self.calls = [(call.name, call.arguments) for call in message.calls]
        self.ids = [call.call_id for call in message.calls]

    @property
    def whole(self):
        return self.text, self.reasoning, self.calls, self.ids


class Parsing:
    tools = TOOLS
    Reading = Reading

    def read(self, parser, text):
        return Reading(parser, list(text))

    @staticmethod
    def cuts(data, text):
        """Draw a way to cut the text into deltas."""
        places = data.draw(st.sets(st.integers(0, len(text)), max_size=12))
        return [text[a:b] for a, b in pairwise([0, *sorted(places), len(text)])]


@pytest.fixture(scope="session")
def parsing():
    return Parsing()
