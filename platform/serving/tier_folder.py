"""A folder for one worker's disk tier: the first below a host's common one that nobody has.

Workers have other names after a restart; what is on disk must be found again all the same.
"""

import fcntl
import os
from pathlib import Path

from stafette.platform.frontend.errors import InvalidSetting

_MOST = 1_024  # workers of one pool on one host


class TierFolder:
    """Ours until `close`, or the end of the process."""

    def __init__(self, base: Path, pool: str) -> None:
        try:
            base.mkdir(parents=True, exist_ok=True)
            self.path, self._lock = _take_first(base, pool)
        except OSError as error:
            remedy = f"cannot be used: {error}"
            raise InvalidSetting("tiers.disk.folder", str(base), remedy) from None

    def close(self) -> None:
        os.close(self._lock)


def _take_first(base: Path, pool: str) -> tuple[Path, int]:
    for number in range(_MOST):
        path = base / f"{pool}-{number}"
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return path, lock
    raise OSError(f"all of {_MOST} folders there are in use")
