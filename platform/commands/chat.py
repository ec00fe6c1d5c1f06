"""Talk with a running server in the terminal."""

import argparse
import sys
from typing import Any

from stafette.platform.commands.talking import Asker, AskingFailed, add_server_arguments

_HELP = "/new begins anew, /quit or Ctrl-D ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="?", help="say this, print the answer, and end")
    add_server_arguments(parser, "of the server")
    parser.add_argument("--model", help="(default: the first that is served)")
    parser.add_argument("--system", help="what the model is told first")
    parser.add_argument("--max-tokens", type=int, help="of each answer")
    parser.add_argument("--temperature", type=float)


def run(arguments: argparse.Namespace) -> int:
    asker = Asker.of(arguments)
    talk = _Talk(asker, arguments)
    if arguments.message is not None:
        talk.say(arguments.message)
        return 0
    print(f"{talk.model} at {asker.url}; {_HELP}")
    while True:
        try:
            message = input("> ").strip()
        except EOFError:
            print()
            return 0
        if message == "/quit":
            return 0
        if message == "/new":
            talk.begin()
        elif message:
            _say(talk, message)


class _Talk:
    """A conversation: what was said goes with every question."""

    def __init__(self, asker: Asker, arguments: argparse.Namespace) -> None:
        self.model: str = arguments.model or asker.get("/v1/models")["data"][0]["id"]
        self._asker = asker
        self._system = arguments.system
        wanted = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
        self._options = {name: value for name, value in wanted.items() if value is not None}
        self.begin()

    def begin(self) -> None:
        system = [{"role": "system", "content": self._system}] if self._system else []
        self._messages: list[dict[str, str]] = system

    def say(self, message: str) -> None:
        """Print the answer as it comes; a question without one is forgotten."""
        asked = [*self._messages, {"role": "user", "content": message}]
        body = {"model": self.model, "messages": asked, "stream": True, **self._options}
        answer = ""
        for event in self._asker.events("/v1/chat/completions", body):
            text = _text(event)
            sys.stdout.write(text)
            sys.stdout.flush()
            answer += text
        print()
        self._messages = [*asked, {"role": "assistant", "content": answer}]


def _say(talk: _Talk, message: str) -> None:
    try:
        talk.say(message)
    except AskingFailed as error:
        print(f"stafette: {error}", file=sys.stderr)
    except KeyboardInterrupt:  # enough of this answer
        print()


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    delta = choices[0].get("delta", {})
    return delta.get("content") or delta.get("reasoning_content") or ""
