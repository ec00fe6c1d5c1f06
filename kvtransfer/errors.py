"""What can go wrong with KV blocks and their events, and what the caller can do about it.

KvTransferError        every error of this package
├── InvalidValue       an argument is wrong: the caller's bug or configuration
└── MalformedMessage   a peer's bytes break the format: drop them, count them, ask for a snapshot
"""

_SHOWN_CHARS = 120


class KvTransferError(Exception):
    """The base of this package's errors."""


class InvalidValue(KvTransferError, ValueError):
    """Names the argument that is wrong, the value it has, and what to do."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        super().__init__(field, value, remedy)  # all arguments: they must survive pickling
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field} = {repr(self.value)[:_SHOWN_CHARS]}: {self.remedy}"


class MalformedMessage(KvTransferError, ValueError):
    """Says where in the message, and what was expected there."""

    def __init__(self, where: str, expected: str) -> None:
        super().__init__(where, expected)
        self.where = where
        self.expected = expected

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}"
