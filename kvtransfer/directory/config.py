"""What a directory is told when it is made; where its backend is stands in the backend's config."""

from dataclasses import dataclass

from stafette.kvtransfer.directory.records import check_name
from stafette.kvtransfer.errors import InvalidValue

_ABOVE_ZERO = ("ttl_s", "timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryConfig:
    cluster: str = "default"  # its peers see each other, and no others
    ttl_s: float = 10.0  # after which a peer that died is gone; equal in all of the cluster
    timeout_s: float = 5.0  # of a call, unless it names its own

    def __post_init__(self) -> None:
        try:
            check_name(self.cluster)
        except InvalidValue as error:
            raise InvalidValue("directory.cluster", self.cluster, error.remedy) from None
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise InvalidValue(f"directory.{name}", getattr(self, name), "must be above 0")

    @property
    def silence_s(self) -> float:
        """How long a backend may say nothing until it counts as unavailable.

        Shorter than that, and every publisher had time for a heartbeat before and after.
        """
        return self.ttl_s / 2
