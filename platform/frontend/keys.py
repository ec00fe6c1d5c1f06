"""API keys: who may ask, and how much.

A file, or the environment, holds one key a line, with the limits that are its own:

    # name   key          limits
    alice    sk-abc123    requests_per_minute=600 max_concurrent=8
    bob      sk-def456
"""

import hmac
import secrets
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from stafette.platform.frontend.errors import InvalidSetting, Unauthorized


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    name: str  # may be shown, logged and counted by
    secret: str = field(repr=False)
    requests_per_minute: float | None = None  # None: no limit
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        if not self.secret.isascii() or not self.secret:
            raise InvalidSetting("api_keys", self.name, "its key must be ASCII, and not empty")
        for name in ("requests_per_minute", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidSetting(f"api_keys {self.name} {name}", value, "must be above 0")


class KeyRing:
    """Finds a key in a time that tells nothing about the keys there are.

    Keys are looked up by a hash under a secret of this process: whoever sends guesses cannot know
    which of them come close.
    """

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._salt = secrets.token_bytes(32)
        self._keys = {self._digest(key.secret): key for key in keys}
        names = [key.name for key in keys]
        for name in names:
            if names.count(name) > 1:
                raise InvalidSetting("api_keys", name, "is the name of two keys: rename one")
        if len(self._keys) < len(keys):
            raise InvalidSetting("api_keys", names, "two of these have the same key: change one")

    def find(self, authorization: str | None) -> ApiKey:
        """Return the key of a request's Authorization header; Unauthorized when there is none."""
        if authorization is None:
            raise Unauthorized("no API key: send it as `Authorization: Bearer KEY`")
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized("the Authorization header must be `Bearer KEY`")
        key = self._keys.get(self._digest(secret.strip()))
        if key is None or not hmac.compare_digest(key.secret, secret.strip()):
            raise Unauthorized("this API key is not known: check it, or ask for one")
        return key

    def _digest(self, secret: str) -> bytes:
        return blake2b(secret.encode("latin-1", "replace"), key=self._salt, digest_size=32).digest()


def read_keys(text: str) -> tuple[ApiKey, ...]:
    """Return the keys of such a file; InvalidSetting names the line that is wrong, not the key."""
    lines = [(number, line.partition("#")[0].split()) for number, line in _numbered(text)]
    return tuple(_key(number, words) for number, words in lines if words)


def read_key_file(path: str) -> tuple[ApiKey, ...]:
    try:
        keys = read_keys(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting("api_keys", path, f"cannot be read: {error}") from error
    if not keys:
        raise InvalidSetting("api_keys", path, "holds no key: write one a line, NAME KEY")
    return keys


def _numbered(text: str) -> list[tuple[int, str]]:
    return list(enumerate(text.splitlines(), start=1))


def _key(number: int, words: list[str]) -> ApiKey:
    if len(words) == 1:
        return ApiKey(name=f"key-{number}", secret=words[0])
    name, secret, *limits = words
    key = ApiKey(name=name, secret=secret)
    for limit in limits:
        key = _limited(key, limit, number)
    return key


def _limited(key: ApiKey, limit: str, number: int) -> ApiKey:
    name, _, value = limit.partition("=")
    try:
        if name == "requests_per_minute":
            return replace(key, requests_per_minute=float(value))
        if name == "max_concurrent":
            return replace(key, max_concurrent=int(value))
    except ValueError:
        raise InvalidSetting(f"api_keys line {number} {name}", value, "must be a number") from None
    remedy = "is no limit: requests_per_minute=N or max_concurrent=N"
    raise InvalidSetting(f"api_keys line {number}", name, remedy)
