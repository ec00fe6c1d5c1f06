"""What an installation holds, and what is left of it without a compiler or without extras."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kvtransfer", "platform", "router", "workers")
FILES = ("MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml", "setup.py")
SHIPPED = ("*.py", "py.typed", "*.html", "*.css", "*.js", "*.svg")
SMALL = ["--max-model-len", "256", "--num-kv-blocks", "32", "--max-num-seqs", "2"]


def run(*arguments, **environment):
    """Run Python away from the repository, where only what is installed can be imported."""
    command = [sys.executable, *arguments]
    env = os.environ | {name: str(value) for name, value in environment.items()}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", timeout=200)


def build(kind, sources, into):
    """Build with the installed setuptools, for speed on a machine that has no compiler."""
    script = (
        f"import os; os.chdir({str(sources)!r}); import setuptools.build_meta as backend; "
        f"print('made', backend.build_{kind}({str(into)!r}))"
    )
    done = run("-c", script, CC="/no/such/compiler", CXX="/no/such/compiler")
    assert done.returncode == 0, done.stderr
    return into / re.search(r"^made (.+)$", done.stdout, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    sources = tmp_path_factory.mktemp("clone")
    for name in FILES:
        shutil.copy(ROOT / name, sources)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for name in (*PACKAGES, "benchmarks", "src"):
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=unwanted)
    return build("sdist", sources, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xzf", sdist, "-C", unpacked], check=True)
    (sources,) = unpacked.iterdir()
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder for PYTHONPATH that goes before the development install."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def sources_of(package, *patterns):
    """Return what the repository has, by the name that it should have in the wheel."""
    files = (path for pattern in patterns for path in (ROOT / package).rglob(pattern))
    return {f"stafette/{path.relative_to(ROOT)}" for path in files}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_made_of_the_source_archive_holds_every_module(wheel, package):
    names = set(zipfile.ZipFile(wheel).namelist())

    assert sources_of(package, *SHIPPED) <= names


def test_a_wheel_holds_nothing_but_the_package(wheel):
    folders = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}

    assert {name for name in folders if not name.endswith(".dist-info")} == {"stafette"}


def test_the_source_archive_holds_the_native_sources(sdist):
    names = {name.partition("/src/")[2] for name in tarfile.open(sdist).getnames()}
    native = sources_of("workers", "*.cpp", "*.h") | sources_of("kvtransfer", "*.cpp", "*.h")

    assert native
    assert native <= names


def test_without_a_compiler_the_engine_runs_on_torch_and_says_once_why(installed):
    answer = ["--max-tokens", "4", "--quiet", "--raw", "The capital of France is"]

    done = run("-m", "stafette", "generate", *SMALL, *answer, PYTHONPATH=installed)

    assert "Paris" in done.stdout
    assert done.stderr.count("WARNING") == len(done.stderr.splitlines()) == 1
    assert "g++" in done.stderr


def test_asking_for_native_kernels_that_were_not_built_names_the_remedy(installed):
    flags = [*SMALL, "--runner", "native"]

    done = run("-m", "stafette", "generate", *flags, "hello", PYTHONPATH=installed)

    assert done.returncode == 1
    assert done.stderr.startswith("stafette: runner = 'native': ")
    assert "g++" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_blocks_are_hashed_without_the_native_helper_all_the_same(installed):
    script = (
        "from stafette.kvtransfer.native import hashing\n"
        "from stafette.kvtransfer.blocks import BlockHasher\n"
        "hashes = BlockHasher('key', 4, 'm').hash_blocks(list(range(400)))\n"
        "print(hashing.load() is not None, hashes[-1].hex())"
    )

    pure, development = run("-c", script, PYTHONPATH=installed), run("-c", script)

    assert pure.stdout.split()[0] == "False"
    assert pure.stdout.split()[1] == development.stdout.split()[1]


def test_every_package_of_the_development_extra_is_pinned():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *extras["dependencies"],
        *extras["optional-dependencies"]["engine"],
        *extras["optional-dependencies"]["dev"],
    ]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {plain(line.partition("==")[0]) for line in pins}

    names = {plain(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}

    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)
    assert names - pinned == {"stafette"}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()
