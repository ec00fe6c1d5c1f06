"""Measures every endpoint at every level, in order; what is finished is not measured again."""

import itertools
import platform
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from stafette.platform.bench.asking import Manner, ask
from stafette.platform.bench.backends import Backend
from stafette.platform.bench.checking import Served, check, check_lengths
from stafette.platform.bench.client import Client, ClientConfig
from stafette.platform.bench.endpoints import Endpoint
from stafette.platform.bench.errors import BenchError, NotWritten, Refused
from stafette.platform.bench.load import Level
from stafette.platform.bench.plan import Plan
from stafette.platform.bench.record import Record
from stafette.platform.bench.results import Results
from stafette.platform.bench.shapes.drawing import single_requests
from stafette.platform.bench.slo import Slo
from stafette.platform.bench.summary import Cost, Summary, summarise
from stafette.platform.bench.words import COMMON, Speller
from stafette.platform.frontend.routes.about import own_version

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
MakeBackend = Callable[[Client, Served], Awaitable[Backend]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    plan: Plan
    results: Results
    config: ClientConfig
    make_backend: MakeBackend
    tell: Callable[[str], None]
    progress: Progress
    slo: Slo | None = None
    cost: Cost = Cost()

    async def run(self, command: str) -> None:
        """Raise the first error when all that can be measured was."""
        self.results.check(self.plan)
        served = {end.label: await self._checked(end) for end in self.plan.endpoints}
        self.results.begin(self.plan, _about(command, served))
        errors: dict[str, BenchError] = {}
        lanes: dict[str, _Lane] = {}
        try:
            # A level of each endpoint in turn: what else the machine does, it does to all of them.
            for level, endpoint in itertools.product(self._levels(), self.plan.endpoints):
                label = endpoint.label
                if label in errors or self.results.finished(label, level):
                    continue
                try:
                    if label not in lanes:
                        lanes[label] = await self._lane(endpoint, served[label])
                    await self._level(lanes[label], level)
                except NotWritten:
                    raise
                except BenchError as error:
                    errors[label] = error
        finally:
            for lane in lanes.values():
                lane.client.close()
        if errors:
            raise next(iter(errors.values()))

    def _levels(self) -> Sequence[Level]:
        levels = self.plan.levels()
        for label in (each.label for each in self.plan.endpoints):
            if done := sum(self.results.finished(label, level) for level in levels):
                self.tell(f"{label}: {done} of {len(levels)} levels are finished already")
        return levels

    async def _checked(self, endpoint: Endpoint) -> Served:
        client = Client(endpoint, self.config)
        try:
            served = await check(client, self.plan.model)
        finally:
            client.close()
        if self.plan.shape.to_dict()["kind"] != "trace":
            check_lengths(served, self.plan.lengths, endpoint.label)
        return served

    async def _lane(self, endpoint: Endpoint, served: Served) -> "_Lane":
        manner = Manner(
            model=served.model,
            api=self.plan.api,
            stream=self.plan.stream,
            ignore_eos=self.plan.ignore_eos,
        )
        client = Client(endpoint, self.config)
        try:
            lane = _Lane(client, manner, await self.make_backend(client, served))
            await self._warm(client, manner)
        except BaseException:
            client.close()
            raise
        return lane

    async def _warm(self, client: Client, manner: Manner) -> None:
        speller = Speller(COMMON, str(random.random()))
        for each in single_requests(self.plan.lengths, self.plan.warmup, "warm"):
            said = [{"role": "user", "content": speller.text(each.turns[0].pieces)}]
            heard = await ask(client, manner, said, each.turns[0].output_tokens)
            if heard.error:
                where = f"--endpoint {client.endpoint.label}"
                raise Refused(where, client.endpoint.url, f"fails a first request: {heard.error}")

    async def _level(self, lane: "_Lane", level: Level) -> None:
        label, records = lane.client.endpoint.label, list[Record]()
        salt = f"{self.plan.seed} {label} {level.name}"
        folder = self.results.level(label, level.name)
        try:
            with (
                self.results.records(label, level) as file,
                self.progress(f"{label} {level.name}", level.num_requests) as advance,
            ):

                def keep(record: Record) -> None:
                    records.append(record)
                    file.add(record)
                    advance()

                server = await lane.backend.measure(
                    lane.client, lane.manner, level, salt, folder, keep
                )
            summary = summarise(records, self.slo, self.cost, server)
            _check_answered(summary, lane.client, level)
        except BaseException as error:  # also of Ctrl-C: what there is tells that it is not all
            partial = summarise(records, self.slo, self.cost, {})
            why = str(error) or type(error).__name__
            self.results.broke(label, level, {"why": why, "partial": partial.to_dict()})
            raise
        self.results.finish(label, level, self._told(label, level, summary))

    def _told(self, label: str, level: Level, summary: Summary) -> Mapping[str, Any]:
        about = {"label": label, "level": level.name, "load": level.load}
        about |= {"axis": self.plan.shape.axis, "backend": self.plan.backend}
        about |= {"gpus": self.cost.gpus}
        return about | {"summary": summary.to_dict()}


@dataclass(frozen=True, slots=True)
class _Lane:
    """An endpoint that is being measured."""

    client: Client
    manner: Manner
    backend: Backend


def _check_answered(summary: Summary, client: Client, level: Level) -> None:
    if summary.requests:
        return
    kind, count = next(iter(summary.errors.items()), ("nothing was asked", 0))
    remedy = f"answered no request of {level.name}: {count} times {kind}"
    raise Refused(f"--endpoint {client.endpoint.label}", client.endpoint.url, remedy)


def _about(command: str, served: Mapping[str, Served]) -> dict[str, Any]:
    return {
        "command": command,
        "stafette": own_version(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "servers": {label: dict(each.about) for label, each in served.items()},
    }
