"""A router's process: answers one question, a JSON line, and ends: every measurement begins fresh.

    python -P -m benchmarks.router.contenders.child MODULE

MODULE is one beside this; its `Index` (and `Placement`) is measured.
"""

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.router import measuring

QUESTIONS: dict[str, Callable[..., dict[str, float]]] = {
    "look_up": measuring.look_up,
    "apply": measuring.apply,
    "memory": measuring.memory,
    "place": measuring.place,
}


def main() -> None:
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # peers print; the channel is ours
    module = import_module(f"benchmarks.router.contenders.{sys.argv[1]}")
    question = json.loads(sys.stdin.readline())
    channel.write(json.dumps(_reply(module, question)) + "\n")
    channel.flush()
    os._exit(0)  # a peer's threads are not waited for


def _reply(module: Any, question: dict[str, Any]) -> dict[str, Any]:
    try:
        return QUESTIONS[question.pop("ask")](module, **question)
    except Exception as error:  # the edge of this process: the driver is told
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
