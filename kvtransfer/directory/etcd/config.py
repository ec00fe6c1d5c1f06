"""Where the etcd is, and who we are for it."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from stafette.kvtransfer.errors import InvalidValue

_SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdConfig:
    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)  # all of one cluster; https: with TLS
    prefix: str = "/stafette"  # of all our keys
    user: str = ""  # empty: without authentication
    password: str = field(default="", repr=False)
    ca_cert: bytes = b""  # PEM, of who signed the server's certificate; empty: the system's
    client_cert: bytes = b""  # PEM; for a server that wants to know its clients
    client_key: bytes = field(default=b"", repr=False)
    backoff_s: float = 0.05  # after a call that failed; doubles up to the next
    max_backoff_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise InvalidValue("etcd.endpoints", self.endpoints, "must name at least one")
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        if len({urlsplit(endpoint).scheme for endpoint in self.endpoints}) > 1:
            raise InvalidValue("etcd.endpoints", self.endpoints, "must be all http or all https")
        if not self.prefix.startswith("/") or self.prefix.endswith("/"):
            raise InvalidValue(
                "etcd.prefix", self.prefix, "must begin with a slash, and end without"
            )
        self._check_credentials()
        if not 0 < self.backoff_s <= self.max_backoff_s:
            remedy = f"must be above 0, and at most max_backoff_s = {self.max_backoff_s:g}"
            raise InvalidValue("etcd.backoff_s", self.backoff_s, remedy)

    @property
    def tls(self) -> bool:
        return self.endpoints[0].startswith("https:")

    def _check_credentials(self) -> None:
        if bool(self.user) != bool(self.password):
            raise InvalidValue("etcd.user", self.user, "must be given together with a password")
        if bool(self.client_cert) != bool(self.client_key):
            remedy = "must be given together with client_key"
            raise InvalidValue("etcd.client_cert", f"{len(self.client_cert)} bytes", remedy)
        if (self.ca_cert or self.client_cert) and not self.tls:
            remedy = "must begin with https:// where certificates are given"
            raise InvalidValue("etcd.endpoints", self.endpoints, remedy)


def _check_endpoint(endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        complete = parts.scheme in _SCHEMES and parts.hostname and parts.port
    except ValueError:  # of the port
        complete = False
    if not complete:
        raise InvalidValue("etcd.endpoints", endpoint, "must be like http://host:2379")
