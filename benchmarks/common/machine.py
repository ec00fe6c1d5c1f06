"""What a result was measured on: numbers without their machine mean little."""

import os
import platform
from pathlib import Path

GIB = 1 << 30
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "neon", "asimd")


def describe() -> dict[str, object]:
    """Return the machine as plain values."""
    fields = _cpu_fields()
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "load": [round(value, 2) for value in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def line() -> str:
    """Return the machine in one line, with its load: a busy one measures other things."""
    about = describe()
    flags = " ".join(map(str, about["cpu_flags"]))  # type: ignore[call-overload]
    load = about["load"][0]  # type: ignore[index]
    return (
        f"{about['cores']} cores of {about['cpu']} ({flags}), {about['memory_gib']} GiB, "
        f"load {load}, Python {about['python']}"
    )


def _cpu_fields() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
