"""The requests of the service: placed, and kept in the books until they are freed or expire."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from stafette.kvtransfer.errors import InvalidValue as KvInvalidValue
from stafette.router.errors import IncompatibleCache, InvalidValue, UnknownReservation
from stafette.router.hashing import PromptHasher
from stafette.router.request import Request
from stafette.router.router import KvRouter, Placement
from stafette.router.service import messages
from stafette.router.service.explaining import decision_of
from stafette.router.service.leases import Leases
from stafette.router.service.waiting import WaitingRoom

Answer = dict[str, object]


class Requests:
    """Used by the event loop's thread alone."""

    def __init__(
        self,
        router: KvRouter,
        prompts: PromptHasher,
        room: WaitingRoom,
        clock: Callable[[], float],
    ) -> None:
        self.leases = Leases()
        self.room = room
        self._router = router
        self._prompts = prompts
        self._clock = clock

    def select(self, asked: messages.Select) -> Answer | Awaitable[Answer]:
        """Return where it goes; something to wait for when no worker is free enough yet."""
        request = self._request(asked)
        if not asked.reserve:
            return self._answer(self._router.select(request), asked.explain)
        placed = self.room.offer(request)
        if isinstance(placed, Placement):
            return self._booked(asked, placed)
        return self._when_placed(asked, placed)

    def reserve(self, asked: messages.Reserve) -> Answer:
        """Book what a `select` with `reserve: false` has told."""
        placement = self._router.reserve(asked.request_id)
        self._hold(asked)
        return self._answer(placement, False)

    def first_token(self, asked: messages.FirstToken) -> Answer:
        self._router.first_token(asked.request_id, asked.cached_tokens, asked.ttft_ms)
        self.leases.renew(asked.request_id, self._clock())
        self.room.poll()
        return {"request_id": asked.request_id}

    def progress(self, asked: messages.Progress) -> Answer:
        self._router.progress(asked.request_id, asked.output_tokens)
        self.leases.renew(asked.request_id, self._clock())
        return {"request_id": asked.request_id}

    def free(self, asked: messages.Free) -> Answer:
        self._router.free(asked.request_id, asked.output_tokens)
        self.leases.release(asked.request_id)
        self.room.poll()
        return {"request_id": asked.request_id}

    def heartbeat(self, asked: messages.Heartbeat) -> Answer:
        return {"reservations": self.leases.renew_holder(f"client {asked.client}", self._clock())}

    def tick(self, now: float) -> None:
        for request_id in self.leases.expire(now):
            with suppress(UnknownReservation):
                self._router.free(request_id)
        self.room.poll()

    async def _when_placed(
        self, asked: messages.Select, future: "asyncio.Future[Placement]"
    ) -> Answer:
        return self._booked(asked, await self.room.wait(asked.request_id, future))

    def _booked(self, asked: messages.Select, placement: Placement) -> Answer:
        self._hold(asked)
        return self._answer(placement, asked.explain)

    def _request(self, asked: messages.Select) -> Request:
        chain, tokens = self._prompt(asked)
        return Request(
            request_id=asked.request_id,
            chain=chain,
            prompt_tokens=tokens,
            expected_output_tokens=asked.expected_output_tokens,
            model=asked.model,
            lora=asked.lora,
            tenant=asked.tenant,
            session=_session(asked),
            priority=asked.priority,
            deadline_s=asked.deadline_s,
            tolerations=asked.tolerations,
            pinned=asked.pinned,
        )

    def _prompt(self, asked: messages.Select) -> tuple[bytes, int]:
        """Return the prompt's chain and its length in tokens."""
        if asked.block_hashes is not None:
            self._check_hashes(asked)
            if asked.prompt_tokens is None:
                raise InvalidValue("prompt_tokens", None, "is required with block_hashes")
            return messages.chain_of(asked.block_hashes), asked.prompt_tokens
        tokens = messages.tokens_of(asked.token_ids)
        if asked.prompt_tokens not in (None, len(tokens)):
            remedy = f"must be the number of token_ids, {len(tokens)}, or left out"
            raise InvalidValue("prompt_tokens", asked.prompt_tokens, remedy)
        try:
            chain = self._prompts.chain(tokens, asked.model, asked.extras, _session(asked))
        except KvInvalidValue as error:
            raise InvalidValue("token_ids", error.value, error.remedy) from None
        return chain, len(tokens)

    def _check_hashes(self, asked: messages.Select) -> None:
        """Hashes of another key or block size would quietly match nothing."""
        hashers = self._prompts.hashers
        if asked.block_size not in (None, hashers.block_size):
            raise IncompatibleCache(
                "the request", "block_size", hashers.block_size, asked.block_size
            )
        if asked.fingerprint is not None:
            ours = hashers.of(asked.model).fingerprint
            if asked.fingerprint != ours:
                theirs = asked.fingerprint.hex()
                raise IncompatibleCache("the request", "fingerprint", ours.hex(), theirs)

    def _hold(self, asked: messages.Select | messages.Reserve) -> None:
        if asked.ttl_s is not None:
            holder = f"client {asked.client}" if asked.client else f"request {asked.request_id}"
            self.leases.hold(asked.request_id, holder, asked.ttl_s, self._clock())

    def _answer(self, placement: Placement, explain: bool) -> Answer:
        source = placement.source
        answer: Answer = {
            "request_id": placement.request_id,
            "decode": placement.decode,
            "prefill": placement.prefill,
            "source": source and source._asdict(),
            "cached_tokens": placement.cached_tokens,
            "ttft_ms": placement.ttft_ms,
        }
        if explain:
            answer["explain"] = decision_of(self._router, placement.request_id, self._clock())
        return answer


def _session(asked: messages.Select) -> str:
    """Sessions of two tenants are two, whatever they are called."""
    return f"{asked.tenant}/{asked.session}" if asked.session else ""
