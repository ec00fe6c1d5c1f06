"""A process whose agent uses NIXL, run by the Python that has it: see contract/owner_process.py.

    python nixl_process.py '{"name": ..., "transport": "nixl", ...}'

Owner and reader are such processes. Reads are known by their numbers.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

from stafette.kvtransfer.errors import KvTransferError
from stafette.kvtransfer.extents import Extents
from stafette.kvtransfer.posting import ReadOptions

BASE = Path(__file__).parents[2] / "contract" / "owner_process.py"

_spec = importlib.util.spec_from_file_location("owner_process", BASE)
base = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(base)


class NixlProcess(base.Owner):
    def begin(self, ticket: str, into: list, source: list, timeout_s: float, verify: bool) -> int:
        lease = self.agent.accept(bytes.fromhex(ticket))
        transfer = self.agent.read(
            Extents.of(base.POOL, into),
            Extents.of(base.POOL, source),
            lease,
            timeout_s,
            ReadOptions(verify=verify),
        )
        self.reads[transfer.id] = transfer
        return transfer.id

    def end(self, number: int, timeout_s: float) -> bool:
        return self.reads[number].wait(timeout_s)

    def cancel(self, number: int) -> None:
        self.reads[number].cancel()

    def settled(self, number: int, timeout_s: float = 0.0) -> bool:
        return self.reads[number].wait_settled(timeout_s)

    def moved(self, number: int) -> int:
        return self.reads[number].telemetry().moved_bytes

    def num_quarantined(self) -> int:
        return len(self.agent.quarantined(base.POOL))

    def clear(self) -> None:
        self.pool[:] = 0

    def num_set(self, start: int, end: int) -> int:
        return int((self.pool[start:end] != 0).sum())

    def close(self) -> None:
        self.agent.close()

    def packages(self) -> list[str]:
        """Return which installed packages this process has loaded."""
        found = set()
        for name, module in sys.modules.items():
            if "site-packages" in (getattr(module, "__file__", None) or ""):
                found.add(name.partition(".")[0])
        return sorted(found)


def main() -> None:
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print; the channel is ours
    process = NixlProcess(json.loads(sys.argv[1]))
    print(json.dumps([process.metadata(), None]), file=channel)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = [getattr(process, command)(*arguments), None]
        except KvTransferError as error:
            answer = [None, [type(error).__name__, str(error)]]
        print(json.dumps(answer), file=channel)
    process.agent.close()


if __name__ == "__main__":
    main()
