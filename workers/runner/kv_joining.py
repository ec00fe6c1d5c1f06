"""Maps the KV pool of another rank of this host, by what it has told of it."""

import os
from typing import Any

from stafette.kvtransfer.memory import SharedMemory
from stafette.kvtransfer.transports.cuda import joined
from stafette.workers.runner.runner import KvLayout, KvMemory


def join_kv(told: dict[str, Any]) -> KvMemory:
    """Map it; after that nobody else can write there."""
    layout = KvLayout(**told["layout"])
    if "gpu" in told:
        return KvMemory(joined.join(joined.Shared(**told["gpu"])), layout)
    fd = os.open(f"/proc/{told['pid']}/fd/{told['fd']}", os.O_RDWR | os.O_CLOEXEC)
    memory = SharedMemory.join("kv", fd)
    memory.seal()
    return KvMemory(memory, layout)
