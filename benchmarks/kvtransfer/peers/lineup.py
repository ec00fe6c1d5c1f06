"""Who can be measured, by name, and how each is run."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from benchmarks.engine.peers import PeerMissing
from benchmarks.kvtransfer.peers import installing

MEMCPY, IPERF = "memcpy", "iperf3"
NIXL_CMA, NIXL_TCP, MOONCAKE = "nixl cma", "nixl tcp", "mooncake tcp"
GRPC, GLOO = "grpc", "gloo"
SHM, TCP = "stafette shm", "stafette tcp"
OURS = (SHM, TCP)
DEFAULT = (MEMCPY, SHM, NIXL_CMA, IPERF, TCP, NIXL_TCP, MOONCAKE, GRPC, GLOO)
QUICK = (MEMCPY, SHM, NIXL_CMA, IPERF, TCP, NIXL_TCP)


@dataclass(frozen=True, slots=True)
class Entry:
    """One system; with `missing`, why it cannot take part."""

    name: str
    command: list[str] = field(default_factory=list)
    env: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""


def entries(names: Iterable[str], folder: Path, install: bool) -> list[Entry]:
    """Return an entry for each name; SystemExit for a name that is none."""
    makers = _makers(folder, install)
    found = []
    for name in names:
        if name not in makers:
            raise SystemExit(f"--systems: {name!r} is none of {', '.join(makers)}")
        try:
            found.append(makers[name](name))
        except PeerMissing as missing:
            found.append(Entry(name, missing=str(missing)))
    return found


def _makers(folder: Path, install: bool) -> dict[str, Callable[[str], Entry]]:
    def ours(name: str) -> Entry:
        return _entry(name, "stafette_agent", name.removeprefix("stafette "))

    def nixl(name: str) -> Entry:
        python = installing.nixl(folder, install)
        transports = "tcp,self" if name == NIXL_TCP else "cma,posix,sysv,tcp,self"
        return _entry(name, "nixl_ucx", "", python, {"UCX_TLS": transports})

    def mooncake(name: str) -> Entry:
        python, env = installing.mooncake(folder, install)
        return _entry(name, "mooncake_tcp", "", python, env)

    def needing(module: str, peer: str) -> Callable[[str], Entry]:
        def make(name: str) -> Entry:
            if find_spec(module) is None:
                raise PeerMissing(f"the package {module} is not installed")
            return _entry(name, peer)

        return make

    return {
        MEMCPY: lambda name: _entry(name, "memcpy"),
        IPERF: lambda name: _iperf(name, folder, install),
        NIXL_CMA: nixl,
        NIXL_TCP: nixl,
        MOONCAKE: mooncake,
        GRPC: needing("grpc", "grpc_stream"),
        GLOO: needing("torch", "gloo"),
        **dict.fromkeys((*OURS, "stafette process_vm", "stafette nixl"), ours),
    }


def _iperf(name: str, folder: Path, install: bool) -> Entry:
    try:
        program, env = installing.iperf3(folder, install)
    except PeerMissing:
        program, env = "", {}  # a plain stream in its stead, which says so
    return _entry(name, "iperf", program, env=env)


def _entry(
    name: str,
    module: str,
    option: str = "",
    python: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Entry:
    interpreter = str(python or sys.executable)
    script = ["-P", "-m", "benchmarks.kvtransfer.peers.child", module, option]
    return Entry(name, [interpreter, *script], env or {})
