"""A worker without a model: stores and removes blocks as it is told, and publishes that.

Reads one JSON list a line, [command, ...], and answers each with a line.
"""

import json
import random
import sys

from stafette.kvtransfer.event_log import CachedBlocks, EventLog
from stafette.kvtransfer.event_stream.publisher import LOOPBACK, EventPublisher, PublisherConfig
from stafette.kvtransfer.events import AllCleared, BlockRemoved, BlockStored


class Worker:
    def __init__(self, publisher: EventPublisher, seed: int) -> None:
        self.publisher = publisher
        self.cached = CachedBlocks()  # apart from the log's own books
        self.stored: list[bytes] = []  # by churn, oldest first
        self.random = random.Random(seed)

    def store(self, *names: str) -> int:
        return self._publish(BlockStored(None, tuple(bytes.fromhex(name) for name in names)))

    def churn(self, num_batches: int) -> int:
        """Publish random changes as fast as can be."""
        for _ in range(num_batches):
            hashes = tuple(self.random.randbytes(16) for _ in range(4))
            gone = 3 if self.random.random() < 0.3 else 0
            old, self.stored = self.stored[:gone], [*self.stored[gone:], *hashes]
            self._publish(BlockStored(None, hashes), BlockRemoved(tuple(old)))
        return self.publisher.log.last_seq

    def clear(self) -> int:
        return self._publish(AllCleared())

    def cached_hashes(self) -> list[str]:
        return [each.hex() for each in self.cached.on("device")]

    def _publish(self, *events) -> int:
        for event in events:
            self.publisher.log.add(event)
            self.cached.apply(event)
        return self.publisher.publish().seq


def main() -> None:
    settings = json.loads(sys.argv[1])
    log = EventLog("w", settings["epoch"], settings.get("capacity", 10_000))
    config = PublisherConfig(
        address=settings["address"] or LOOPBACK,
        replay_address=settings["replay_address"] or LOOPBACK,
        heartbeat_s=settings.get("heartbeat_s", 0.05),
        queue_batches=settings.get("queue_batches", 10_000),
    )
    with EventPublisher(log, config) as publisher:
        print(json.dumps([publisher.address, publisher.replay_address]), flush=True)
        worker = Worker(publisher, settings["epoch"])
        commands = {
            "store": worker.store,
            "churn": worker.churn,
            "clear": worker.clear,
            "cached": worker.cached_hashes,
        }
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(commands[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
