"""A deployment of mock workers, for as long as a benchmark lasts: two processes of its own."""

import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import uvloop

from benchmarks.common.child import Child
from benchmarks.router.completions import Address, Answer, completion, together
from benchmarks.router.mock_workers import MODEL
from benchmarks.router.prefix_load import Asked
from stafette.workers.mocker.speed_profile import Profile

_PATIENCE_S = 60.0
_COMMAND = (sys.executable, "-P", "-m")
_WORKERS, _ENDPOINT = "benchmarks.router.mock_workers", "benchmarks.router.mock_endpoint"


class MockDeployment:
    """Workers in one process, the API with its router in another. Use it in a `with`."""

    def __init__(
        self, roles: Mapping[str, str], policy: str, profile: Profile, num_blocks: int, logs: Path
    ) -> None:
        told = {"token": secrets.token_hex(16), "profile": asdict(profile)}
        self._workers = Child("workers", (*_COMMAND, _WORKERS), logs / f"workers-{policy}.log")
        self._endpoint = Child("endpoint", (*_COMMAND, _ENDPOINT), logs / f"endpoint-{policy}.log")
        try:
            wanted = {"ask": "start", "roles": dict(roles), "num_blocks": num_blocks}
            addresses = self._workers.ask(wanted | told, _PATIENCE_S, "starting")["addresses"]
            endpoint = {"ask": "start", "addresses": addresses, "policy": policy}
            port = self._endpoint.ask(endpoint | told, _PATIENCE_S, "starting")["port"]
        except BaseException:
            self.close()
            raise
        self.address = ("127.0.0.1", int(port))

    def serve(self, asked: Asked) -> tuple[list[Answer], float]:
        return serve_http(self.address, MODEL, asked)

    def computed_tokens(self) -> int:
        return int(self.stats()["computed_tokens"])

    def stats(self) -> dict[str, float]:
        """Return what all workers have done since they were started."""
        return self._workers.ask({"ask": "stats"}, _PATIENCE_S, "telling")

    def close(self) -> None:
        self._endpoint.close()
        self._workers.close()

    def __enter__(self) -> "MockDeployment":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Endpoint:
    """One that runs already, whoever serves it."""

    def __init__(self, address: Address, model: str) -> None:
        self._address = address
        self._model = model

    def serve(self, asked: Asked) -> tuple[list[Answer], float]:
        return serve_http(self._address, self._model, asked)

    def computed_tokens(self) -> int | None:
        return None


def serve_http(address: Address, model: str, asked: Asked) -> tuple[list[Answer], float]:
    pairs = zip(asked.prompts, asked.lengths, strict=True)
    bodies = [completion(model, prompt, length) for prompt, length in pairs]
    return uvloop.run(together(address, bodies, asked.times))
