"""Backends by name, and the config of all of them."""

import sys

import pytest

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.registry import BACKENDS, open_directory
from stafette.kvtransfer.errors import InvalidValue


def test_an_unknown_backend_lists_those_that_exist():
    with pytest.raises(InvalidValue, match="must be one of memory, etcd"):
        open_directory("consul")


def test_a_backend_that_lacks_its_packages_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    for module in [name for name in sys.modules if ".directory.etcd" in name]:
        monkeypatch.delitem(sys.modules, module)

    with pytest.raises(InvalidValue, match=r"needs the package grpc.*stafette\[etcd\]"):
        open_directory("etcd")


def test_the_memory_directory_needs_no_package_of_etcds():
    assert set(BACKENDS) == {"memory", "etcd"}
    with open_directory("memory", DirectoryConfig(cluster="registry")) as directory:
        assert directory.list() == {}


@pytest.mark.parametrize(
    "options", [{"cluster": ""}, {"cluster": "a/b"}, {"ttl_s": 0.0}, {"timeout_s": float("nan")}]
)
def test_a_wrong_option_is_refused(options):
    with pytest.raises(InvalidValue, match=f"directory.{next(iter(options))}"):
        DirectoryConfig(**options)
