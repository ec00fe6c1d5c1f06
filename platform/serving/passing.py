"""KV on its way from one worker to another: what each of them is told of a hand-off."""

import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from stafette.kvtransfer.connectors.p2p.messages import PARAMS, Give, Take
from stafette.platform.serving.fleet import WorkerFleet
from stafette.workers.errors import Declined, RequestError, WorkerLost
from stafette.workers.request import Request
from stafette.workers.service.frames import Order

_log = logging.getLogger(__name__)
_ID_BYTES = 16
_GIVE_UP_TIMEOUT_S = 5.0

Params = dict[str, object]  # of a request, by connector
FAILURES = (WorkerLost, Declined, RequestError)  # of what is asked of a worker


class HandOff:
    """From a source to a reader: `take` is for the one, `give` for the other."""

    def __init__(self, fleet: WorkerFleet, source: str, reader: str) -> None:
        self.source = source
        self.reader = reader
        self._id = secrets.token_hex(_ID_BYTES)
        self._fleet = fleet
        self._sources: tuple[str, ...] = (source,)  # agents; those of other hosts come to be known
        self._readers: tuple[str, ...] = (reader,)

    def take(self, num_blocks: int | None = None) -> Params:
        """Return the reader's part; `num_blocks`: all that there will be."""
        return Take(self._id, self._sources, num_blocks).params()

    def give(self) -> Params:
        """Return the source's part."""
        return Give(self._id, self._readers).params()

    async def introduce(self) -> None:
        """Let the two know each other; WorkerLost when one of them is not there."""
        await self._fleet.introduce(self.source, self.reader)
        self._sources = self._fleet.agents(self.source)
        self._readers = self._fleet.agents(self.reader)

    async def pass_on(self, request: Request, timeout_s: float) -> None:
        """Have the source pass on what is cached of a prompt: what is not, the reader computes."""
        named = replace(request, request_id=f"{request.request_id}-c")
        order = Order(for_one_token(named), self.give(), cached_only=True)
        try:
            await self._fleet.client(self.source).prefill(order, timeout_s)
        except FAILURES as error:
            _log.info("%s passes nothing on: %s", self.source, error)
            with suppress(*FAILURES):  # a reader that is gone waits for nothing
                reader = self._fleet.client(self.reader)
                await reader.ask("give_up", self._id, _GIVE_UP_TIMEOUT_S)


def both(one: Mapping[str, object], other: Mapping[str, object]) -> Params:
    """Return the parameters of a request that takes from one worker, and gives to another."""
    return {**one, PARAMS: _own(one) | _own(other)}


def for_one_token(request: Request) -> Request:
    """A prompt is computed when its first token is there."""
    params = replace(
        request.params,
        max_tokens=len(request.output_token_ids) + 1,
        min_tokens=0,
        logprobs=None,
        prompt_logprobs=None,
        structured=None,
        ignore_eos=True,
    )
    return replace(request, params=params)


def _own(params: Mapping[str, object]) -> dict[str, object]:
    own = params.get(PARAMS, {})
    assert isinstance(own, dict)
    return own
