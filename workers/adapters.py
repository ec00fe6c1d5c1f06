"""LoRA adapters by name: which slot of the runner each one is in, and who uses it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from stafette.workers.config import EngineConfig
from stafette.workers.errors import ConfigError, RequestError
from stafette.workers.runner.runner import Runner

OnDevice = Callable[[Callable[[], None]], None]  # runs a call between two steps


@dataclass(frozen=True, slots=True)
class Loaded:
    """An adapter in its slot; `identity` is never used again, so that its KV is not either."""

    slot: int
    identity: str


NO_ADAPTER = Loaded(-1, "")


class Adapters:
    """Loads and unloads while the engine runs; an adapter in use stays."""

    def __init__(self, config: EngineConfig, runner: Runner, on_device: OnDevice) -> None:
        self._enabled = config.enable_lora
        self._free = list(reversed(range(config.max_loras)))
        self._runner = runner
        self._on_device = on_device
        self._loaded: dict[str, Loaded] = {}
        self._users: Counter[str] = Counter()
        self._times: Counter[str] = Counter()  # it was loaded, under this name

    @property
    def names(self) -> list[str]:
        return sorted(self._loaded)

    def load(self, name: str, path: str) -> None:
        """Read the adapter in folder `path`; CheckpointError when it does not fit the model."""
        if not self._enabled:
            raise ConfigError("enable_lora", False, "set enable_lora=True to load adapters")
        if name in self._loaded:
            raise RequestError("lora", name, "is loaded already: unload it first")
        if not self._free:
            remedy = f"all {len(self._loaded)} slots are taken: unload one or raise max_loras"
            raise RequestError("lora", name, remedy)
        slot = self._free[-1]
        self._on_device(lambda: self._runner.add_lora(slot, path))
        loaded_before = self._times[name]
        self._times[name] += 1
        # Of the first load the name alone: other workers, and routers, hash the same.
        identity = f"{name}\0{loaded_before}" if loaded_before else name
        self._loaded[name] = Loaded(self._free.pop(), identity)

    def unload(self, name: str) -> None:
        slot = self.find(name).slot
        if self._users[name]:
            raise RequestError("lora", name, f"{self._users[name]} requests use it: wait for them")
        self._on_device(lambda: self._runner.remove_lora(slot))
        self._free.append(self._loaded.pop(name).slot)

    def find(self, name: str | None) -> Loaded:
        """Return where the adapter is; RequestError when it is not loaded."""
        if name is None:
            return NO_ADAPTER
        if name not in self._loaded:
            loaded = ", ".join(self.names) or "none"
            raise RequestError("lora", name, f"is not loaded; loaded: {loaded}")
        return self._loaded[name]

    def hold(self, name: str | None) -> None:
        if name is not None:
            self._users[name] += 1

    def release(self, name: str | None) -> None:
        if name is not None:
            self._users[name] -= 1
