"""The repository's shape: what may import what, and what must stay importable."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_the_standard_library_platform_is_not_hidden():
    assert platform.system()
    assert not (ROOT / "platform" / "__init__.py").exists()


@pytest.mark.parametrize("package", ["kvtransfer", "router"])
def test_library_packages_import_neither_torch_nor_ray(package):
    modules = [
        f"stafette.{package}." + ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py"
    ]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "sys.exit(any(heavy in sys.modules for heavy in ('torch', 'ray', 'transformers')))\n"
    )

    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_importing_the_workers_package_loads_no_torch():
    script = "import sys, stafette.workers; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


@pytest.mark.parametrize("package", ["kvtransfer", "platform", "router", "workers"])
def test_each_package_link_is_relative_and_points_to_the_root(package):
    link = ROOT / "src" / "stafette" / package

    assert link.readlink() == Path("..") / ".." / package
    assert link.resolve() == ROOT / package
