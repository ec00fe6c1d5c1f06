"""Log lines: readable on a terminal, JSON elsewhere, with the request that they are about."""

import json
import logging
import sys
import time

from stafette.workers.logging_context import REQUEST, TRACE


def set_up(level: str, process: str = "") -> None:
    """Let what stafette and its HTTP server say go to stderr; `process` names this one.

    To the one that the process began with: in a replica, Ray Serve puts another in its place that
    takes lines for text of its own log, and looks through the stack for each.
    """
    stream = sys.__stderr__ or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Readable() if stream.isatty() else JsonLines(process))
    for name, least in (("stafette", level), ("uvicorn", "warning")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least.upper())
        logger.propagate = False


class Readable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        request = REQUEST.get()
        about = f" [{request}]" if request else ""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{at} {record.levelname:<7} {record.getMessage()}{about}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonLines(logging.Formatter):
    """One object a line; what is not known is left out."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("stafette."),
            "process": self._process,
            "request": REQUEST.get(),
            "trace_id": TRACE.get(),
            "message": record.getMessage(),
            "error": self.formatException(record.exc_info) if record.exc_info else "",
        }
        return json.dumps({name: value for name, value in line.items() if value != ""})
