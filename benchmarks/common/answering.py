"""A child process that answers questions, one JSON line each, in its event loop."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Answer = Callable[..., Awaitable[Mapping[str, Any]]]


async def answer_lines(answers: Mapping[str, Answer]) -> None:
    """Answer {"ask": name, ...} by the function of that name; end when the input does."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        try:
            question = json.loads(line)
            told = await answers[question.pop("ask")](**question)
        except Exception as error:  # the edge of this process: the driver is told
            told = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)
    os._exit(0)  # what was started here serves nobody any more
