"""Let workers compute prompts now that many will ask for soon: their KV is cached before the peak.

A file has a prompt a line, as JSON: a string, or an object with `prompt` or `messages` as the API
takes them, perhaps with `lora` and `cache_salt`.
"""

import argparse
import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stafette.platform.commands.reaching import Workers, add_reaching_arguments
from stafette.platform.commands.telling import tell
from stafette.platform.frontend.errors import InvalidSetting

_TIMEOUT_S = 300.0  # of one prompt: it waits behind what the worker has
_OF_TEXT = ("prompt", "messages", "tools")  # what /tokenize takes
_OF_CACHE = ("lora", "cache_salt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="a prompt a line, as JSON")
    parser.add_argument(
        "--worker",
        action="append",
        metavar="NAME",
        help="as `stafette status` shows it; may be repeated (default: all)",
    )
    add_reaching_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    prompts = list(_read(arguments.file))
    workers = Workers(arguments)
    payloads = [_payload(workers, prompt) for prompt in prompts]
    addresses = workers.addresses(arguments.worker)
    asyncio.run(_preheat(workers, addresses, payloads))
    return 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidSetting("file", str(path), f"cannot be read: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _prompt(f"{path.name}:{number}", line)


def _prompt(where: str, line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise InvalidSetting(where, line, f"is not JSON: {error}") from None
    if isinstance(told, str):
        told = {"prompt": told}
    if not isinstance(told, dict) or ("prompt" in told) == ("messages" in told):
        remedy = "must be a string, or an object with either `prompt` or `messages`"
        raise InvalidSetting(where, line, remedy)
    for name in told:
        if name not in (*_OF_TEXT, *_OF_CACHE):
            known = ", ".join((*_OF_TEXT, *_OF_CACHE))
            raise InvalidSetting(
                f"{where}: {name}", told[name], f"is not known; there are: {known}"
            )
    return told


def _payload(workers: Workers, prompt: dict[str, Any]) -> dict[str, Any]:
    """Return a prompt as workers take it: in tokens."""
    text = {name: prompt[name] for name in _OF_TEXT if name in prompt}
    tokens = workers.asker.post("/tokenize", text)["tokens"]
    return {"tokens": tokens} | {name: prompt.get(name) for name in _OF_CACHE}


async def _preheat(
    workers: Workers, addresses: Mapping[str, str], payloads: list[dict[str, Any]]
) -> None:
    async def one(name: str, address: str) -> None:
        questions = [("preheat", payload) for payload in payloads]
        cached = sum(await workers.ask(name, address, questions, _TIMEOUT_S))
        tell(f"{name} has {len(payloads)} prompts cached, {cached} tokens in whole blocks")

    await asyncio.gather(*(one(name, address) for name, address in addresses.items()))
