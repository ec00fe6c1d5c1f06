"""The transports by name. One that lacks its driver hurts only whoever asks for it."""

from collections.abc import Callable
from importlib import import_module

from stafette.kvtransfer.errors import InvalidValue
from stafette.kvtransfer.transport import Surroundings, Transport

_MODULES = {
    "shm": "ShmTransport",
    "process_vm": "ProcessVmTransport",
    "tcp": "TcpTransport",
    "cuda_ipc": "CudaIpcTransport",
    "torch_dist": "TorchDistTransport",
    "nixl": "NixlTransport",
}
NAMES = tuple(_MODULES)


def make(name: str, surroundings: Surroundings, options: object = None) -> Transport:
    """Return the transport of that name; `options` is its own config, or None for its defaults."""
    factory = _factory(name)
    return factory(surroundings) if options is None else factory(surroundings, options)


def _factory(name: str) -> Callable[..., Transport]:
    if name not in _MODULES:
        raise InvalidValue("transport", name, f"must be one of {', '.join(NAMES)}")
    module = import_module(f"stafette.kvtransfer.transports.{name}")
    factory: Callable[..., Transport] = getattr(module, _MODULES[name])
    return factory
