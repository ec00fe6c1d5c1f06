"""A system's process: answers JSON lines from the driver, one run each.

    python -P -m benchmarks.kvtransfer.peers.child MODULE OPTION

MODULE is one beside this; its `contender(OPTION)` is measured.
"""

import json
import os
import sys
from dataclasses import asdict
from importlib import import_module
from typing import Any

from benchmarks.kvtransfer.peers.protocol import Contender, Run


def main() -> None:
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # peers print; the channel is ours
    module, option = sys.argv[1:]
    contender: Contender = import_module(f"benchmarks.kvtransfer.peers.{module}").contender(option)
    for line in sys.stdin:
        channel.write(json.dumps(_reply(contender, Run(**json.loads(line)))) + "\n")
    contender.close()
    os._exit(0)  # a peer's threads are not waited for


def _reply(contender: Contender, run: Run) -> dict[str, Any]:
    try:
        return asdict(contender.measure(run))
    except Exception as error:  # the edge of this process: the driver is told
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
