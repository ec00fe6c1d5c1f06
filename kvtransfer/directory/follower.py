"""Keeps the picture up to date: one thread that follows the backend, through its outages."""

import logging
import random
import threading
import time

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.counters import Tally
from stafette.kvtransfer.directory.picture import Picture
from stafette.kvtransfer.directory.store import Feed, Store
from stafette.kvtransfer.errors import DirectoryUnavailable

_log = logging.getLogger(__name__)

_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 1.0
_TICK_S = 0.25
_CLOSE_TIMEOUT_S = 5.0


class Follower:
    def __init__(
        self, store: Store, picture: Picture, config: DirectoryConfig, tally: Tally
    ) -> None:
        self.trouble = ""  # why there is no picture, or no news; empty: there are
        self.heard_at: float | None = None  # of time.monotonic: the backend's last sign of life
        self._store = store
        self._picture = picture
        self._config = config
        self._tally = tally
        self._backoff_s = _MIN_BACKOFF_S
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._feed: Feed | None = None

    def start(self) -> None:
        """Begin, unless it has begun. Who only publishes needs no picture."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="directory-follower", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """Begin to end. The beginning of a feed ends when the store is closed."""
        self._closed.set()
        feed = self._feed
        if feed is not None:
            feed.close()

    def join(self) -> None:
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_TIMEOUT_S)
            if thread.is_alive():
                _log.error("the follower still waits for %s", self._store.place)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._follow()
            except DirectoryUnavailable as error:
                self._note(error.reason)
            except Exception as error:  # our bug; without a follower nothing would go on
                _log.exception("the directory's follower failed")
                self._note(repr(error))
            self._closed.wait(random.uniform(0.5, 1) * self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, _MAX_BACKOFF_S)

    def _follow(self) -> None:
        """Follow until the feed breaks, or we are closed."""
        feed = self._store.follow(self._config.silence_s, self._config.timeout_s)
        self._feed = feed
        try:
            self._picture.replace(feed.snapshot, feed.rewound or self._was_out())
            self._recover()
            while not self._closed.is_set():
                self.heard_at = feed.heard_at
                self._picture.apply(feed.next(_TICK_S))
        finally:
            self._feed = None
            feed.close()

    def _was_out(self) -> bool:
        if self.heard_at is None:
            return False
        return time.monotonic() - self.heard_at > self._config.silence_s

    def _note(self, reason: str) -> None:
        if self._closed.is_set():
            return
        if not self.trouble:
            self._tally.count("outages")
            _log.warning("%s is not available: %s", self._store.place, reason)
        self.trouble = reason

    def _recover(self) -> None:
        if self.trouble:
            _log.info("%s is available again", self._store.place)
        self.trouble = ""
        self._backoff_s = _MIN_BACKOFF_S
