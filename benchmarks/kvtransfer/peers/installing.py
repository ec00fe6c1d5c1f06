"""Installs the systems we compare with: environments and Debian packages under one folder."""

import ctypes
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.peers import PeerMissing, call

NIXL = ["nixl==1.5.1", "nixl-cu12==1.5.1"]  # without what they ask for: that is torch with CUDA
MOONCAKE = ["mooncake-transfer-engine-non-cuda==0.3.13"]
_IBVERBS = ["libibverbs1", "libnl-3-200", "libnl-route-3-200"]
_IPERF = ["iperf3", "libiperf0", "libsctp1"]

_INSTALL_S = 1200.0
_DOWNLOAD_S = 120.0
_MARKER = "installed.txt"  # written last: an interrupted installation starts afresh


def nixl(folder: Path, install: bool) -> Path:
    """Return a Python that has NIXL, and what `stafette.kvtransfer` needs beside it."""
    return _environment(folder / "nixl", NIXL, ["numpy", "msgpack", "xxhash"], install)


def mooncake(folder: Path, install: bool) -> tuple[Path, dict[str, str]]:
    """Return a Python that has Mooncake, and the environment that it needs."""
    python = _environment(folder / "mooncake", MOONCAKE, ["numpy"], install)
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError:
        return python, _debian(folder / "ibverbs", _IBVERBS, install)[1]
    return python, {}


def iperf3(folder: Path, install: bool) -> tuple[str, dict[str, str]]:
    """Return the program, the system's or Debian's unpacked, and the environment it needs."""
    program = shutil.which("iperf3")
    if program:
        return program, {}
    home, env = _debian(folder / "iperf3", _IPERF, install)
    return str(home / "usr" / "bin" / "iperf3"), env


def _environment(home: Path, packages: Sequence[str], needs: Sequence[str], install: bool) -> Path:
    """Return the Python of an environment with these packages, and only what they really need."""
    marker, python, wanted = home / _MARKER, home / "bin" / "python", " ".join([*packages, *needs])
    if marker.exists() and marker.read_text() == wanted:
        return python
    _may_install(install, wanted, home)
    shutil.rmtree(home, ignore_errors=True)
    call([sys.executable, "-m", "venv", str(home)], _INSTALL_S)
    pip = [str(python), "-m", "pip", "install", "-q"]
    call([*pip, "--no-deps", *packages], _INSTALL_S)
    call([*pip, *needs], _INSTALL_S)
    marker.write_text(wanted)
    return python


def _debian(home: Path, packages: Sequence[str], install: bool) -> tuple[Path, dict[str, str]]:
    """Return where Debian's packages lie unpacked, and how their libraries are found."""
    marker, wanted = home / _MARKER, " ".join(packages)
    if not (marker.exists() and marker.read_text() == wanted):
        _may_install(install, wanted, home)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        script = f"apt-get download -q {wanted} && for p in *.deb; do dpkg-deb -x $p . ; done"
        call(["sh", "-ec", f"cd '{home}' && {script}"], _DOWNLOAD_S)
        marker.write_text(wanted)
    places = sorted({str(library.parent) for library in home.rglob("lib*.so.*")})
    return home, {"LD_LIBRARY_PATH": ":".join(places)}


def _may_install(allowed: bool, what: str, home: Path) -> None:
    if not allowed:
        raise PeerMissing(f"{what} is not installed in {home} yet: --quick installs nothing")
    print(f"installing {what} into {home}", file=sys.stderr, flush=True)
