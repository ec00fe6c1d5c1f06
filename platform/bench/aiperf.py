"""Lets aiperf, NVIDIA's client, measure a level, and reads its records."""

import asyncio
import json
import os
import random
import shlex
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from stafette.platform.bench.asking import Manner
from stafette.platform.bench.backends import Keep
from stafette.platform.bench.client import Client
from stafette.platform.bench.errors import BenchError
from stafette.platform.bench.load import Lengths, Level
from stafette.platform.bench.record import Record
from stafette.platform.bench.server_metrics import watching

_TAIL_CHARS = 600
_START_S = 300.0  # beside the requests themselves: it is a dozen processes
_SEED_BITS = 31
_WARM_UP = "warmup"  # what its records call the requests that are not measured


def installed() -> str | None:
    """Return where the command is."""
    return shutil.which("aiperf")


@dataclass(frozen=True, slots=True)
class Aiperf:
    command: str
    tokenizer: str  # a directory, or a name that aiperf's libraries find
    lengths: Lengths
    timeout_s: float

    async def measure(
        self, client: Client, manner: Manner, level: Level, salt: str, folder: Path, keep: Keep
    ) -> Mapping[str, Any]:
        out = folder / "aiperf"
        words = self._words(client, manner, level, salt, out)
        shown = [word if word != client.config.key else "***" for word in words]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "command.txt").write_text(shlex.join(shown) + "\n", encoding="utf-8")
        async with watching(client) as watch:
            await self._call(words, _believing(client))
        for record in read(out, manner.stream):
            keep(record)
        return watch.summary()

    def _words(
        self, client: Client, manner: Manner, level: Level, salt: str, out: Path
    ) -> list[str]:
        lengths = self.lengths
        options: dict[str, object] = {
            "-m": manner.model,
            "-u": client.endpoint.url,
            "--endpoint-type": manner.api,
            "--tokenizer": self.tokenizer,
            "--isl": lengths.isl,
            "--isl-stddev": lengths.std,
            "--osl": lengths.osl,
            "--request-count": level.num_requests,
            "--random-seed": random.Random(salt).getrandbits(_SEED_BITS),
            "--output-artifact-dir": out,
            "--ui": "none",
        }
        if manner.ignore_eos:
            options["--extra-inputs"] = "ignore_eos:true"
        if level.limit is not None:  # the first requests of each process open its connections
            options["--warmup-request-count"] = level.limit
        if client.config.key:
            options["--api-key"] = client.config.key
        words = [self.command, "profile", "--use-server-token-count"]
        words += ["--streaming"] if manner.stream else []
        words += [str(each) for pair in options.items() for each in pair]
        return [*words, *(level.aiperf or ())]

    async def _call(self, words: list[str], more: Mapping[str, str]) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *words, stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=os.environ | more
        )
        try:
            async with asyncio.timeout(self.timeout_s + _START_S):
                said, _ = await process.communicate()
        except TimeoutError:
            remedy = f"did not end within {self.timeout_s + _START_S:g} s: see --timeout-s"
            raise BenchError("aiperf", words[0], remedy) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            tail = said.decode(errors="replace")[-_TAIL_CHARS:].strip()
            remedy = f"ended with status {process.returncode}: {tail}"
            raise BenchError("aiperf", words[0], remedy)


def _believing(client: Client) -> dict[str, str]:
    """Return how aiperf and the libraries below it are told whose certificates to believe."""
    trust = client.config.trust
    if trust.insecure:
        return {"AIPERF_HTTP_SSL_VERIFY": "false"}
    return {} if trust.ca_file is None else {"SSL_CERT_FILE": str(trust.ca_file.absolute())}


def read(folder: Path, streamed: bool) -> Iterator[Record]:
    """Yield the records that aiperf wrote."""
    path = folder / "profile_export.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BenchError("aiperf", str(path), f"is not to be read: {error}") from None
    lines = [line for line in lines if line["metadata"].get("benchmark_phase") != _WARM_UP]
    began_ns = min((line["metadata"]["request_start_ns"] for line in lines), default=0)
    for number, line in enumerate(lines):
        yield _record(number, line, began_ns, streamed)


def _record(number: int, line: Mapping[str, Any], began_ns: int, streamed: bool) -> Record:
    about = line["metadata"]
    values = {name: each["value"] for name, each in line["metrics"].items()}
    cached = values.get("usage_prompt_cache_read_tokens")
    prompt = values.get("usage_prompt_tokens", values.get("input_sequence_length", 0))
    return Record(
        number=number,
        session=str(about.get("conversation_id") or ""),
        turn=int(about.get("turn_index") or 0),
        began_s=(about["request_start_ns"] - began_ns) / 1e9,
        chunks_s=_chunks(values, streamed),
        streamed=streamed,
        prompt_tokens=int(prompt),
        cached_tokens=None if cached is None else int(cached),
        output_tokens=int(values.get("output_sequence_length", 0)),
        ended_s=(about["request_end_ns"] - about["request_start_ns"]) / 1e9,
        error=_error(line.get("error")),
    )


def _chunks(values: Mapping[str, Any], streamed: bool) -> tuple[float, ...]:
    if "request_latency" not in values:
        return ()
    if not streamed or "time_to_first_token" not in values:
        return (values["request_latency"] / 1e3,)
    gaps = values.get("inter_chunk_latency", [])
    return tuple(ms / 1e3 for ms in accumulate(gaps, initial=values["time_to_first_token"]))


def _error(told: Mapping[str, Any] | None) -> str:
    if not told:
        return ""
    code, kind = told.get("code"), told.get("type") or "error"
    return f"HTTP {code}: {kind}" if code else str(kind)
