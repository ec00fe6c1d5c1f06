"""Log lines, as people and machines read them."""

import io
import json
import logging
import sys

import pytest

from stafette.platform.logs import JsonLines, Readable, set_up
from stafette.workers.logging_context import REQUEST


@pytest.fixture
def record():
    return logging.LogRecord(
        "stafette.platform.serving.fleet",
        logging.WARNING,
        "",
        1,
        "worker %s is gone",
        ("w0",),
        None,
    )


@pytest.fixture
def request_id():
    token = REQUEST.set("chatcmpl-1")
    yield "chatcmpl-1"
    REQUEST.reset(token)


def test_a_line_of_json_says_who_and_which_request(record, request_id):
    line = json.loads(JsonLines("frontend-a").format(record))

    assert line["message"] == "worker w0 is gone"
    assert (line["process"], line["request"]) == ("frontend-a", request_id)
    assert (line["level"], line["logger"]) == ("warning", "platform.serving.fleet")
    assert "error" not in line


def test_an_error_stays_in_its_line(record):
    try:
        raise ValueError("broken")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)

    assert "\n" not in JsonLines("").format(record)
    assert json.loads(JsonLines("").format(record))["error"].endswith("ValueError: broken")


def test_a_readable_line_ends_with_the_request(record, request_id):
    assert Readable().format(record).endswith("WARNING worker w0 is gone [chatcmpl-1]")


@pytest.fixture
def own():
    """The logger of all that is ours, which the test may set up."""
    loggers = [logging.getLogger(name) for name in ("stafette", "uvicorn")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    yield loggers[0]
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_what_is_no_terminal_gets_json(capfd, own):
    set_up("info", "w0")
    logging.getLogger("stafette.workers").info("ready")
    logging.getLogger("uvicorn.error").info("Application startup complete.")  # nobody's business
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")

    ready, invalid = map(json.loads, capfd.readouterr().err.splitlines())
    assert (ready["process"], invalid["process"]) == ("w0", "w0")
    assert (ready["message"], invalid["level"]) == ("ready", "warning")


def test_who_takes_the_place_of_stderr_gets_nothing(capfd, own, monkeypatch):
    class Terminal(io.StringIO):  # as Serve's in a replica says it is
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    set_up("info", "w0")
    own.info("ready")

    assert not sys.stderr.getvalue()
    assert json.loads(capfd.readouterr().err)["message"] == "ready"
