"""OpenAI's chat API at an exact pace: `paced_server.py FIRST_S STEP_S`. It costs next to nothing.

So a client that is measured has the machine to itself, and what it should find is known.
"""

import asyncio
import json
import sys
import time

import uvloop

_MODEL = "paced"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"


class Paced:
    def __init__(self, first_s: float, step_s: float) -> None:
        self._first_s = first_s
        self._step_s = step_s

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = head.partition("content-length:")[2].split("\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                await self._answer(head.split()[1], body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            _whole(writer, {"data": [{"id": _MODEL}]})
        elif path == "/tokenize":
            _whole(writer, {"count": len(json.loads(body)["prompt"].split())})
        elif path == "/v1/chat/completions":
            await self._chat(json.loads(body), writer)
        else:
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    async def _chat(self, asked: dict[str, object], writer: asyncio.StreamWriter) -> None:
        due = time.perf_counter() + self._first_s
        count = int(str(asked["max_completion_tokens"]))
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        if not asked.get("stream"):
            await asyncio.sleep(self._first_s + self._step_s * (count - 1))
            message = {"role": "assistant", "content": " tok" * count}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            return _whole(writer, {"choices": [choice], "usage": usage})
        writer.write(_HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(count):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            _event(writer, {"choices": [{"index": 0, "delta": {"content": " tok"}}]})
            due += self._step_s
        _event(writer, {"choices": [], "usage": usage})
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))


def _event(writer: asyncio.StreamWriter, told: dict[str, object]) -> None:
    data = b"data: %b\n\n" % json.dumps({"object": "chat.completion.chunk"} | told).encode()
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


def _whole(writer: asyncio.StreamWriter, told: dict[str, object]) -> None:
    body = json.dumps({"object": "chat.completion"} | told).encode()
    head = _HEAD % b"application/json" + b"content-length: %d\r\n\r\n" % len(body)
    writer.write(head + body)


async def main(first_s: float, step_s: float) -> None:
    server = await asyncio.start_server(Paced(first_s, step_s).connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(float(sys.argv[1]), float(sys.argv[2])))
