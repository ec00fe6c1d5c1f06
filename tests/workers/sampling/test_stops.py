"""Stop strings over text that comes in pieces, against a search in the whole of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafette.workers.errors import RequestError
from stafette.workers.sampling.stops import StopChecker

few_letters = st.text("abc", max_size=30)
stop_strings = st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4)


def read(checker: StopChecker, pieces: list[str]) -> tuple[list[str], str | None]:
    shown = []
    for piece in pieces:
        text, stop = checker.feed(piece)
        shown.append(text)
        if stop is not None:
            return shown, stop
    return [*shown, checker.flush()], None


def naive(text: str, stop: list[str]) -> tuple[str, str | None]:
    """Return the text before the stop string that ends first, and that string."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(pieces=st.lists(few_letters, max_size=8), stop=stop_strings)
def test_pieces_give_what_a_search_in_the_whole_text_gives(
    pieces: list[str], stop: list[str]
) -> None:
    shown, found = read(StopChecker(tuple(stop), False), pieces)

    assert ("".join(shown), found) == naive("".join(pieces), stop)


@given(pieces=st.lists(few_letters, max_size=8), stop=stop_strings)
def test_stop_string_is_kept_when_asked_for(pieces: list[str], stop: list[str]) -> None:
    shown, found = read(StopChecker(tuple(stop), True), pieces)

    before, expected = naive("".join(pieces), stop)
    assert ("".join(shown), found) == (before + (expected or ""), expected)


@given(text=few_letters, stop=stop_strings)
def test_only_what_may_begin_a_stop_string_is_withheld(text: str, stop: list[str]) -> None:
    checker = StopChecker(tuple(stop), False)

    shown, found = checker.feed(text)

    if found is None:
        beginnings = [s[:n] for s in stop for n in range(1, len(s))]
        longest = max((len(b) for b in beginnings if text.endswith(b)), default=0)
        assert len(text) - len(shown) == longest


def test_stop_string_that_spans_pieces_is_found() -> None:
    shown, found = read(StopChecker(("END",), False), ["one E", "N", "D two"])

    assert shown == ["one ", "", ""]
    assert found == "END"


def test_withheld_text_comes_once_it_cannot_be_a_stop_string() -> None:
    assert read(StopChecker(("END",), False), ["one EN", "ough"])[0] == ["one ", "ENough", ""]


def test_without_stop_strings_all_text_passes() -> None:
    assert StopChecker((), False).feed("anything") == ("anything", None)


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="stop"):
        StopChecker(("",), False)
