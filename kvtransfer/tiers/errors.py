"""What can go wrong with tiers when they are opened. Afterwards they degrade instead of raising.

TierError
├── TierInUse      another process has the folder: give each worker its own
└── TierMismatch   the folder holds what is not ours to overwrite: another folder, or delete it
"""

from stafette.kvtransfer.errors import KvTransferError


class TierError(KvTransferError):
    """A tier cannot be opened as it is configured."""


class TierInUse(TierError):
    def __init__(self, folder: str, waited_s: float) -> None:
        super().__init__(folder, waited_s)
        self.folder = folder
        self.waited_s = waited_s

    def __str__(self) -> str:
        return (
            f"the disk tier in {self.folder} is in use by another process, after {self.waited_s:g} "
            "s still: give each worker a folder of its own"
        )


class TierMismatch(TierError):
    def __init__(self, file: str, field: str, ours: str, found: str) -> None:
        super().__init__(file, field, ours, found)
        self.file = file
        self.field = field
        self.ours = ours
        self.found = found

    def __str__(self) -> str:
        return (
            f"{self.file} has {self.field} {self.found}, not {self.ours}: choose another folder, "
            "or delete this one"
        )
