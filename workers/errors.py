"""What can go wrong in the engine, and what the caller can do about it.

EngineError            every error of this package; names a field, its value and a remedy
├── ConfigError        a flag is wrong: change it and start again
├── CheckpointError    the model's files are wrong, incomplete or unsupported
├── RequestError       one request is wrong: answer its sender, go on serving the others
├── OutOfMemory        the flags ask for more memory than there is
├── EngineDead         the engine stopped; nothing in flight will be answered
├── WorkerLost         the way to a worker's process broke: go on with another one
└── Declined           a worker takes no more of that: ask another one
"""

_SHOWN_CHARS = 120


class EngineError(Exception):
    """Names the field that is wrong, the value it has, and what to do."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)  # all arguments: they must survive pickling
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > _SHOWN_CHARS:
            shown = shown[: _SHOWN_CHARS - 1] + "…"
        return f"{self.field} = {shown}: {self.remedy}"


class ConfigError(EngineError, ValueError):
    """A flag of the engine."""


class CheckpointError(EngineError, ValueError):
    """A file, tensor or tokenizer of the model."""


class RequestError(EngineError, ValueError):
    """A field of one request."""


class OutOfMemory(EngineError, MemoryError):
    """More memory asked for than there is."""


class EngineDead(EngineError):
    """The engine's loop ended; `value` is the reason."""


class WorkerLost(EngineError):
    """`value` is the worker's name, `remedy` tells what broke."""


class Declined(EngineError):
    """`value` is the worker's name, `remedy` tells why; the request itself may be right."""
