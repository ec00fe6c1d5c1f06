"""Hosts of a cluster on one machine: network namespaces on a bridge, each with an address."""

import os
import random
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager

HOSTS = ("near", "far")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def made(remove: tuple[str, ...], *add: str):
    ip(*add)
    try:
        yield
    finally:
        ip(*remove)


class Hosts:
    """Two hosts that reach each other, and that this process reaches, by TCP only."""

    def __init__(self) -> None:
        self._mark = f"s{os.getpid()}"
        self._net = f"10.{random.randrange(64, 128)}.{random.randrange(256)}"
        self.addresses = {name: f"{self._net}.{place}" for place, name in enumerate(HOSTS, 1)}

    @contextmanager
    def up(self):
        bridge = f"{self._mark}b"
        with ExitStack() as stack:
            remove = ("link", "del", bridge)
            stack.enter_context(made(remove, "link", "add", bridge, "type", "bridge"))
            ip("addr", "add", f"{self._net}.254/24", "dev", bridge)
            ip("link", "set", bridge, "up")
            for name, address in self.addresses.items():
                self._add(stack, name, address, bridge)
            yield self

    def command(self, host: str, *words: str) -> list[str]:
        """Return what runs a command on a host."""
        return ["ip", "netns", "exec", self._space(host), *words]

    def _add(self, stack: ExitStack, name: str, address: str, bridge: str) -> None:
        space, cable = self._space(name), f"{self._mark}{name[0]}"
        stack.enter_context(made(("netns", "del", space), "netns", "add", space))
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", cable, "master", bridge, "up")
        inside = ("-n", space)
        ip(*inside, "addr", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip(*inside, "link", "set", device, "up")

    def _space(self, name: str) -> str:
        return f"{self._mark}{name}"


def why_not() -> str | None:
    """Why this machine cannot have such hosts; None: it can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "there is no `ip` here (Debian's iproute2)"
    try:
        with Hosts().up():
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
