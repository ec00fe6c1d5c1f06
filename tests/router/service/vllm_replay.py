"""Sends again what a real vLLM has published: the same frames, on the same kinds of sockets.

Reads a number of batches a line, publishes so many more, and answers with how many there were.
With "quiet" behind the number they go into the replay buffer alone.
"""

import base64
import json
import sys
import threading

import zmq

END = (-1).to_bytes(8, "big", signed=True)


def main() -> None:
    with open(sys.argv[1]) as file:
        lines = [json.loads(line) for line in file]
    batches = [(one["seq"], base64.b64decode(one["payload"])) for one in lines if "seq" in one]
    context = zmq.Context()
    events, replays = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
    for socket in (events, replays):
        socket.bind("tcp://127.0.0.1:*")
    sent: list[tuple[int, bytes]] = []
    threading.Thread(target=answer, args=(replays, sent), daemon=True).start()
    addresses = [each.getsockopt_string(zmq.LAST_ENDPOINT) for each in (events, replays)]
    print(json.dumps(addresses), flush=True)
    for line in sys.stdin:
        count, *quiet = line.split()
        for seq, payload in batches[len(sent) : len(sent) + int(count)]:
            sent.append((seq, payload))
            if not quiet:
                events.send_multipart((b"", seq.to_bytes(8, "big"), payload))
        print(len(sent), flush=True)


def answer(replays, sent) -> None:
    while True:
        client, _, start = replays.recv_multipart()
        for seq, payload in list(sent):
            if seq >= int.from_bytes(start, "big"):
                replays.send_multipart((client, b"", seq.to_bytes(8, "big"), payload))
        replays.send_multipart((client, b"", END, b""))


if __name__ == "__main__":
    main()
