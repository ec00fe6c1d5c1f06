"""A child answers questions line by line; its failures say who, what and how long."""

import sys

import pytest

from benchmarks.common.child import Child, ChildFailed

ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"


@pytest.fixture
def start(tmp_path):
    children = []

    def run(script: str) -> Child:
        children.append(Child("echo", [sys.executable, "-c", script], tmp_path / "log"))
        return children[-1]

    yield run
    for child in children:
        child.close()


def test_an_answer_comes_back_even_after_a_pause(start):
    child = start(ECHO)

    assert child.ask({"a": 1}, 20, "first") == {"a": 1}
    child.pause()
    assert child.ask({"b": 2}, 20, "second") == {"b": 2}


def test_an_error_in_the_answer_is_raised(start):
    with pytest.raises(ChildFailed, match="echo failed at adding: too many"):
        start(ECHO).ask({"error": "too many"}, 20, "adding")


def test_a_silent_child_is_named_with_the_time_it_had(start):
    child = start("import sys; sys.stdin.read()")

    with pytest.raises(ChildFailed, match=r"echo failed at loading: no answer within 0 s"):
        child.ask({}, 0.05, "loading")


def test_a_child_that_dies_leaves_its_status_and_last_words(start):
    child = start("import sys; sys.stdin.readline(); sys.exit('no memory left')")

    with pytest.raises(ChildFailed, match=r"status 1; .* no memory left"):
        child.ask({}, 20, "loading")


def test_closing_twice_is_harmless(start):
    child = start(ECHO)

    child.close()
    child.close()
