"""One stream of etcd's watch. A thread reads it: to read from a gRPC stream takes any time."""

import threading
from queue import Empty, SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped]

from stafette.kvtransfer.directory.etcd.messages import WATCH, pb
from stafette.kvtransfer.errors import DirectoryUnavailable

_CLOSE_TIMEOUT_S = 5.0


class WatchStream:
    def __init__(
        self, channel: Any, metadata: tuple[tuple[str, str], ...], create_request: Any, place: str
    ) -> None:
        self._place = place
        self._requests: SimpleQueue[Any] = SimpleQueue()  # None: the end
        self._answers: SimpleQueue[Any] = SimpleQueue()  # a text is the last: why it has ended
        self._requests.put(pb.WatchRequest(create_request=create_request))
        begin = channel.stream_stream(
            WATCH.path, pb.WatchRequest.SerializeToString, WATCH.answer.FromString
        )
        self._call = begin(iter(self._requests.get, None), metadata=metadata)
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self._thread.start()

    def read(self, timeout_s: float) -> Any | None:
        """Return the next answer, or None after that time; DirectoryUnavailable at the end."""
        try:
            answer = self._answers.get(timeout=max(timeout_s, 0))
        except Empty:
            return None
        if isinstance(answer, str):
            self._answers.put(answer)
            raise DirectoryUnavailable(self._place, answer)
        return answer

    def ask_progress(self) -> None:
        """Have the server say something."""
        self._requests.put(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    def close(self) -> None:
        self._requests.put(None)
        self._call.cancel()
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        end = "the server has ended the watch"
        try:
            for answer in self._call:
                self._answers.put(answer)
        except grpc.RpcError as error:
            end = f"{error.code().name}: {error.details()}"
        self._answers.put(end)
