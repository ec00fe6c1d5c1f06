"""A peer that is published and does nothing else, until it is told to, or killed.

Reads one JSON list a line, [command, ...], and answers each with a line.
"""

import json
import sys

from stafette.kvtransfer.directory.config import DirectoryConfig
from stafette.kvtransfer.directory.etcd.config import EtcdConfig
from stafette.kvtransfer.directory.records import PeerRecord
from stafette.kvtransfer.directory.registration import Registration
from stafette.kvtransfer.directory.registry import open_directory


def serve(registration: Registration) -> None:
    commands = {
        "state": lambda: registration.state,
        "update": lambda text: registration.update(text.encode()),
        "withdraw": registration.withdraw,
        "why": lambda: str(registration.ended.exception(10)),
    }
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(commands[name](*arguments)), flush=True)


def main() -> None:
    settings = json.loads(sys.argv[1])
    config = DirectoryConfig(cluster=settings["cluster"], ttl_s=settings["ttl_s"])
    options = EtcdConfig(endpoints=(settings["endpoint"],))
    directory = open_directory("etcd", config, options)
    record = PeerRecord(settings["epoch"], b"metadata")
    registration = directory.publish(settings["name"], record)
    print(json.dumps("published"), flush=True)
    serve(registration)


if __name__ == "__main__":
    main()
