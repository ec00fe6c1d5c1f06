"""The directory's backends by name. One that lacks its driver hurts only whoever asks for it."""

from collections.abc import Callable
from importlib import import_module

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.directory import Directory
from stafette.kvtransfer.directory.store import Store
from stafette.kvtransfer.errors import InvalidValue

_FACTORIES = {
    "memory": ("stafette.kvtransfer.directory.memory", "shared_store"),
    "etcd": ("stafette.kvtransfer.directory.etcd.store", "EtcdStore"),
}
BACKENDS = tuple(_FACTORIES)


def open_directory(
    backend: str, config: DirectoryConfig | None = None, options: object = None
) -> Directory:
    """Return a directory; `options` is its backend's own config, or None for its defaults."""
    config = config or DirectoryConfig()
    return Directory(_factory(backend)(config.cluster, options), config)


def _factory(backend: str) -> Callable[[str, object], Store]:
    if backend not in _FACTORIES:
        raise InvalidValue("directory backend", backend, f"must be one of {', '.join(BACKENDS)}")
    module, name = _FACTORIES[backend]
    try:
        factory: Callable[[str, object], Store] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        remedy = f"needs the package {error.name}: pip install 'stafette[{backend}]'"
        raise InvalidValue("directory backend", backend, remedy) from None
    return factory
