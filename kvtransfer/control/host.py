"""Tells which processes share a host: the same kernel, and the namespaces that sharing needs."""

import logging
import os
import uuid
from functools import cache
from hashlib import blake2b
from pathlib import Path

_log = logging.getLogger(__name__)

_PROC = Path("/proc")
# Abstract sockets belong to a network namespace, process ids to a pid namespace.
_NAMESPACES = ("net", "ipc", "pid")


@cache
def host_id() -> str:
    """Return what is equal for two processes only if they can share memory and sockets."""
    return read_host_id(_PROC)


def read_host_id(proc: Path) -> str:
    """Return an id of our own where /proc tells nothing: such a process has only remote peers."""
    try:
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        spaces = [os.readlink(proc / "self/ns" / name) for name in _NAMESPACES]
    except OSError as error:
        _log.warning("every peer counts as remote, because the host cannot be told: %s", error)
        return uuid.uuid4().hex
    return blake2b("|".join([boot, *spaces]).encode(), digest_size=16).hexdigest()
