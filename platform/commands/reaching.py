"""How commands reach the workers of a running fleet: a frontend names them, a token opens."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stafette.platform.commands.talking import Asker, AskingFailed, add_server_arguments
from stafette.platform.config import MADE_TOKEN, TOKEN_VARIABLE, load
from stafette.platform.frontend.errors import InvalidSetting


def add_reaching_arguments(parser: argparse.ArgumentParser) -> None:
    add_server_arguments(parser)
    parser.add_argument(
        "--config",
        type=Path,
        help=f"the fleet's YAML file, for the cluster's token (default: {TOKEN_VARIABLE})",
    )


class Workers:
    """The workers of one fleet."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        loaded = load(arguments.config)
        if loaded.token_origin == MADE_TOKEN:
            remedy = f"is needed to talk to workers: set {TOKEN_VARIABLE}, or name the --config"
            raise InvalidSetting("cluster.token", None, remedy)
        self._config = loaded.config
        self.asker = Asker.of(arguments)

    def addresses(self, names: Sequence[str] | None = None) -> Mapping[str, str]:
        """Return where these are, or all, by name."""
        found = self.asker.get("/v1/workers")["data"]
        known = {str(worker["name"]): str(worker["address"]) for worker in found}
        for name in names or ():
            if name not in known:
                shown = ", ".join(known) or "none"
                remedy = f"is not in the fleet of {self.asker.url}; there are: {shown}"
                raise AskingFailed("worker", name, remedy)
        return {name: known[name] for name in names or sorted(known)}

    def address(self, name: str) -> str:
        return self.addresses([name])[name]

    async def ask(
        self, name: str, address: str, questions: Sequence[tuple[str, object]], timeout_s: float
    ) -> list[Any]:
        """Ask one worker (operation, payload) after (operation, payload); return its answers."""
        from stafette.platform.serving.assembly import service_config
        from stafette.workers.service.client import WorkerClient

        config = service_config(self._config)
        client = await WorkerClient.connect(name, address, "command", config)
        try:
            return [await client.ask(what, payload, timeout_s) for what, payload in questions]
        finally:
            await client.close()
