"""A worker of ours without a model: publishes that it holds the blocks of a prompt.

Reads one JSON list of token ids a line, stores their blocks, and answers with their number.
"""

import json
import sys

from stafette.kvtransfer.blocks import BlockHasher
from stafette.kvtransfer.event_log import EventLog
from stafette.kvtransfer.event_stream.publisher import EventPublisher, PublisherConfig
from stafette.kvtransfer.events import BlockStored


def main() -> None:
    settings = json.loads(sys.argv[1])
    hasher = BlockHasher(settings["key"], settings["block_size"], settings["model"])
    log = EventLog(settings["worker"], settings["epoch"])
    with EventPublisher(log, PublisherConfig(heartbeat_s=0.05)) as publisher:
        about = [publisher.address, publisher.replay_address, hasher.fingerprint.hex()]
        print(json.dumps(about), flush=True)
        for line in sys.stdin:
            hashes = hasher.hash_blocks(json.loads(line))
            log.add(BlockStored(None, tuple(hashes)))
            publisher.publish()
            print(len(hashes), flush=True)


if __name__ == "__main__":
    main()
