"""A stock vLLM worker without vLLM: the same sockets, frames and buffer as its ZmqEventPublisher.

The facts are from vllm/distributed/kv_events.py: numbers from 0, msgpack of [ts, events, rank] or,
in newer versions, of a map; a ROUTER that answers [identity, empty, first] batch by batch from a
buffer, and then with -1. Unlike there, the addresses are bound to free ports of this host.

Reads one JSON list a line, [command, ...], and answers each with a line.
"""

import json
import sys
import threading
import time
from collections import deque

import msgpack
import zmq

END = (-1).to_bytes(8, "big", signed=True)


class VllmWorker:
    def __init__(self, settings) -> None:
        self.is_new = settings["is_new"]  # maps instead of lists
        self.topic = settings.get("topic", "").encode()
        context = zmq.Context()
        self.pub, self.replay = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        self.pub.set_hwm(100_000)
        self.pub.bind(settings.get("address") or "tcp://127.0.0.1:*")
        self.replay.bind(settings.get("replay_address") or "tcp://127.0.0.1:*")
        self.addresses = [each.getsockopt_string(zmq.LAST_ENDPOINT) for each in self.sockets]
        self.buffer = deque(maxlen=settings.get("buffer_steps", 10_000))
        self.next_seq = 0
        self.lock = threading.Lock()
        threading.Thread(target=self._serve_replays, daemon=True).start()

    @property
    def sockets(self):
        return self.pub, self.replay

    def store(self, number: int, count: int = 1, sent: bool = True) -> int:
        """Store one-token blocks, each the child of the one before, in a batch each."""
        for block in range(number, number + count):
            parent = block - 1 if block else None
            self._publish([self._stored(block, parent)], sent)
        return self.next_seq

    def remove(self, number: int) -> int:
        fields = {"block_hashes": [self._hash(number)], "medium": "GPU"}
        self._publish([self._event("BlockRemoved", fields)])
        return self.next_seq

    def clear(self) -> int:
        self._publish([self._event("AllBlocksCleared", {})])
        return self.next_seq

    def _stored(self, block: int, parent: int | None):
        fields = {
            "block_hashes": [self._hash(block)],
            "parent_block_hash": None if parent is None else self._hash(parent),
            "token_ids": [block],
            "block_size": 1,
            "lora_id": None,
            "medium": "GPU",
            "lora_name": None,
        }
        return self._event("BlockStored", fields)

    def _hash(self, block: int):
        return (1000 + block).to_bytes(32, "little") if self.is_new else 1000 + block

    def _event(self, name: str, fields):
        return {"type": name, **fields} if self.is_new else [name, *fields.values()]

    def _publish(self, events, sent: bool = True) -> None:
        now = time.time()
        batch = (
            {"ts": now, "events": events, "data_parallel_rank": 0}
            if self.is_new
            else [now, events, 0]
        )
        payload = msgpack.packb(batch)
        with self.lock:
            if sent:
                number = self.next_seq.to_bytes(8, "big")
                self.pub.send_multipart((self.topic, number, payload))
            self.buffer.append((self.next_seq, payload))
            self.next_seq += 1

    def _serve_replays(self) -> None:
        while True:
            client, _, start = self.replay.recv_multipart()
            with self.lock:
                batches = list(self.buffer)
            for seq, payload in batches:
                if seq >= int.from_bytes(start, "big"):
                    self.replay.send_multipart((client, b"", seq.to_bytes(8, "big"), payload))
            self.replay.send_multipart((client, b"", END, b""))


def main() -> None:
    worker = VllmWorker(json.loads(sys.argv[1]))
    print(json.dumps(worker.addresses), flush=True)
    commands = {"store": worker.store, "remove": worker.remove, "clear": worker.clear}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(commands[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
